"""CodeParrot's rows: every format gives the same records; the choice of files; what is missing is named."""

import gzip
import json

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from entropy_attn.data import codeparrot, pipeline, tokenizer
from entropy_attn.errors import UserError
from tests.data.conftest import make_config


@pytest.fixture(scope="module")
def bpe(tmp_path_factory, texts):
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  tokenizer.train(texts, 300, path)
  return path


def _config(tmp_path, path, bpe, **fields):
  fields = {"data__name": "codeparrot", "data__path": str(path), "data__tokenizer": str(bpe), **fields}
  return make_config(tmp_path / "built", **fields)


def _lines(texts):
  return "".join(json.dumps({"repo_name": "r", "content": text}) + "\n" for text in texts)


def _write(path, texts):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".parquet":
    table = pyarrow.table({"license": ["mit"] * len(texts), "content": texts})
    parquet.write_table(table, path, row_group_size=3)
  elif path.name.endswith(".gz"):
    path.write_bytes(gzip.compress(_lines(texts).encode()))
  elif path.name.endswith("array.json"):
    path.write_text(json.dumps([{"content": text} for text in texts], indent=1))
  else:
    path.write_text(_lines(texts))


def _tokens(dataset):
  return [np.stack([source[i]["inputs"] for i in range(len(source))]) for source in (dataset.train, dataset.valid)]


def test_every_format_gives_the_same_records(tmp_path, texts, bpe):
  found = []
  for suffix in (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz", "-array.json"):
    folder = tmp_path / suffix.replace(".", "_")
    _write(folder / f"data/train-0{suffix}", texts[:10])
    _write(folder / f"data/train-1{suffix}", texts[10:16])
    _write(folder / f"data/valid{suffix}", texts[16:20])
    found.append(_tokens(pipeline.prepare(_config(tmp_path, folder, bpe))))
  for train, valid in found:
    np.testing.assert_array_equal(train, found[0][0])
    np.testing.assert_array_equal(valid, found[0][1])
  opened = tokenizer.open_tokenizer(str(bpe))
  expected = [ids[: len(ids) // 32 * 32] for ids in opened.encode_batch(texts[:16])]
  assert found[0][0].ravel().tolist() == [token for ids in expected for token in ids]


def _corpus(tmp_path, **fields):
  return codeparrot.codeparrot(_config(tmp_path, tmp_path / "rows", "unused", **fields).data)


def test_the_first_files_of_the_shuffle_are_taken(tmp_path):
  documents = [f"document {i}" for i in range(50)]
  _write(tmp_path / "rows/train.jsonl", documents)
  _write(tmp_path / "rows/validation.jsonl", documents[:9])
  corpus = _corpus(tmp_path, data__max_train_files=20, data__max_valid_files=100)
  order = np.random.default_rng(0).permutation(50)  # what Hugging Face's shuffle(seed=0) draws
  assert list(corpus.documents("train")) == [documents[i] for i in sorted(order[:20])]
  assert list(corpus.documents("valid")) == documents[:9]
  assert corpus.skipped["beyond data.max_train_files"] == 30
  other = _corpus(tmp_path, data__max_train_files=21, data__max_valid_files=100)
  assert other.fingerprint != corpus.fingerprint


def test_without_validation_files_documents_are_held_out(tmp_path):
  documents = [f"document {i % 150}" for i in range(200)]  # the last 50 are copies
  _write(tmp_path / "rows/a.jsonl", documents)
  corpus = _corpus(tmp_path, data__valid_fraction=0.2)
  train, valid = list(corpus.documents("train")), list(corpus.documents("valid"))
  assert sorted(train + valid) == sorted(documents)
  assert not set(train) & set(valid)
  assert 10 < len(set(valid)) < 60


def test_missing_files_are_named_with_what_to_do_instead(tmp_path, texts, bpe):
  embedded = "--config.data.name=python_source"
  with pytest.raises(UserError, match=f"none' is not a folder.*--config.data.path=FOLDER.*{embedded}"):
    pipeline.prepare(_config(tmp_path, tmp_path / "none", bpe))
  (tmp_path / "rows").mkdir()
  with pytest.raises(UserError, match=f"rows' holds none of .parquet.*{embedded}"):
    pipeline.prepare(_config(tmp_path, tmp_path / "rows", bpe))
  _write(tmp_path / "rows/valid.jsonl", texts)
  with pytest.raises(UserError, match="every file has 'valid' in its path"):
    pipeline.prepare(_config(tmp_path, tmp_path / "rows", bpe))
  with pytest.raises(UserError, match="codeparrot needs a tokenizer"):
    _write(tmp_path / "rows/train.jsonl", texts)
    pipeline.prepare(_config(tmp_path, tmp_path / "rows", ""))


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b'{"text": "x"}\n', "a.jsonl has no column 'content' .it has: text."),
    ("a.jsonl", b'{"content": 3}\n', "column 'content' holds int, not text"),
    ("a.jsonl", b'{"content": "x"}\n{"cont', "a.jsonl cannot be read as .jsonl"),
    ("a.jsonl", b"\xff\n", "a.jsonl cannot be read as .jsonl"),
    ("a.json.gz", gzip.compress(b'{"content": "x"}\n' * 99, mtime=0)[:-20], "a.json.gz cannot be read as .gz"),
    ("a.json.gz", b"plain", "a.json.gz cannot be read as .gz"),
    ("a.parquet", b"PAR1", "a.parquet cannot be read as .parquet"),
  ],
)
def test_damaged_files_are_named(tmp_path, bpe, name, content, message):
  (tmp_path / "rows").mkdir()
  (tmp_path / "rows" / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    pipeline.prepare(_config(tmp_path, tmp_path / "rows", bpe))
