"""CodeParrot's rows: every format gives the same records; the choice of files; what is missing is named."""

import gzip
import json

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from entropy_attn.data import codeparrot, hub, pipeline, tokenizer
from entropy_attn.errors import UserError
from tests.data.small_configs import make_config


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
  with pytest.raises(UserError, match="every file has 'valid' or 'test' in its path"):
    pipeline.prepare(_config(tmp_path, tmp_path / "rows", bpe))


def test_the_default_tokenizer_is_the_published_one(tmp_path, texts, monkeypatch):
  _write(tmp_path / "rows/train.jsonl", texts)

  def offline(name, *args):
    raise UserError("the Hub cannot be reached")

  monkeypatch.setattr(hub, "fetch", offline)
  with pytest.raises(UserError, match=f"data.tokenizer='{codeparrot.TOKENIZER}': the Hub cannot be reached"):
    pipeline.prepare(_config(tmp_path, tmp_path / "rows", ""))


@pytest.mark.parametrize(
  ("names", "train", "valid"),
  [
    (["train.jsonl", "val.jsonl", "test.jsonl"], ["train.jsonl"], ["val.jsonl"]),
    (["train/a.jsonl", "dev/a.jsonl", "test/a.jsonl"], ["train/a.jsonl"], ["dev/a.jsonl"]),
    (["x-train-0.jsonl", "y/x-valid-1.jsonl"], ["x-train-0.jsonl"], ["y/x-valid-1.jsonl"]),
    (["a.jsonl", "b_validation.jsonl"], ["a.jsonl"], ["b_validation.jsonl"]),
    (["ds_train.json.gz", "ds_valid.json.gz"], ["ds_train.json.gz"], ["ds_valid.json.gz"]),
    (["train.jsonl", "Validation.jsonl", "all.jsonl"], ["train.jsonl"], ["Validation.jsonl"]),
    (["invalid.jsonl", "latest.jsonl", "contest.jsonl", "x/testing.jsonl"], None, []),
  ],
)  # fmt: skip
def test_files_say_their_split_by_whole_words(tmp_path, names, train, valid):
  for name in names:
    _write(tmp_path / "rows" / name, [f"{name} {i}" for i in range(30)])
  corpus = _corpus(tmp_path)
  found = {split: {text.split()[0] for text in corpus.documents(split)} for split in ("train", "valid")}
  assert found["train"] == set(names if train is None else train)
  if valid:
    assert found["valid"] == set(valid)
    (note,) = corpus.notes
    assert valid[0] in note and len(note) < 200
  assert sum(corpus.left_out.values()) == (0 if train is None else len(names) - len(train) - len(valid))


def test_a_fraction_that_is_unused_is_refused(tmp_path):
  for name in ("train", "valid"):
    _write(tmp_path / f"rows/{name}.jsonl", ["x"])
  with pytest.raises(UserError, match=r"data.valid_fraction=0.2 is unused.*valid.jsonl"):
    _corpus(tmp_path, data__valid_fraction=0.2)


def test_unpaired_surrogates_are_replaced_and_counted(tmp_path, texts, bpe):
  _write(tmp_path / "rows/train.jsonl", [f"{text}\ud83d" for text in texts[:3]] + texts[3:9] + ["\U0001f600"])
  _write(tmp_path / "rows/valid.jsonl", ["\ude00" + text for text in texts[9:11]])
  corpus = _corpus(tmp_path)
  assert list(corpus.documents("train"))[:1] == [f"{texts[0]}\ufffd"]
  assert list(corpus.documents("train"))[-1] == "\U0001f600"
  assert "surrogates replaced in 5 files" in pipeline.prepare(_config(tmp_path, tmp_path / "rows", bpe)).description


def test_parquet_of_surrogates_is_read(tmp_path):
  raw = pyarrow.array([b"fine", "half \ud83d".encode("utf-8", "surrogatepass")], pyarrow.binary())
  column = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
  (tmp_path / "rows").mkdir()
  parquet.write_table(pyarrow.table({"content": column}), tmp_path / "rows/train.parquet")
  _write(tmp_path / "rows/valid.jsonl", ["x"])
  assert list(_corpus(tmp_path).documents("train")) == ["fine", "half \ufffd"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz"])
@pytest.mark.parametrize("array", [False, True])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding, suffix, array):
  documents = ["naïve 🙂\r\n", "", "\0 second"]
  (tmp_path / "rows").mkdir()
  lines = json.dumps([{"content": d} for d in documents]) if array else _lines(documents).replace("\n", "\r\n")
  content = lines.encode(encoding)
  (tmp_path / f"rows/train{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
  _write(tmp_path / "rows/valid.jsonl", ["x"])
  assert list(_corpus(tmp_path).documents("train")) == documents


def test_links_are_followed_once_and_what_is_left_out_is_told(tmp_path, texts, bpe):
  _write(tmp_path / "rows/train.jsonl", texts[:9])
  _write(tmp_path / "elsewhere/valid.jsonl", texts[9:12])
  (tmp_path / "rows/more").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "elsewhere/back").symlink_to(tmp_path / "rows")
  (tmp_path / "rows/again-train.jsonl").symlink_to("train.jsonl")
  (tmp_path / "rows/nothing.jsonl").symlink_to("none")
  corpus = _corpus(tmp_path)
  assert [list(corpus.documents(split)) for split in ("train", "valid")] == [texts[:9], texts[9:12]]
  assert corpus.left_out == {"dangling link": 1, "linked twice": 2}
  assert "1 dangling link" in pipeline.prepare(_config(tmp_path, tmp_path / "rows", bpe)).description


def test_a_file_that_changes_between_the_passes_is_named(tmp_path):
  for name in ("train", "valid"):
    _write(tmp_path / f"rows/{name}.jsonl", ["x", "y"])
  corpus = _corpus(tmp_path)
  assert list(corpus.documents("train")) == ["x", "y"]
  _write(tmp_path / "rows/train.jsonl", ["x"])
  with pytest.raises(UserError, match="changed while read"):
    list(corpus.documents("train"))


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b'{"text": "x"}\n', "a.jsonl has no column 'content' in row 1 .it has: text."),
    ("a.jsonl", b'{"content": "x"}\n\n{"content": 3}\n', "a.jsonl: column 'content' holds int, not text, in row 3"),
    ("a.jsonl", b'{"content": "x"}\n{"cont', "a.jsonl cannot be read as .jsonl .row 2: not JSON"),
    ("a.jsonl", b'{"content": "x"}\n\xff\n', "a.jsonl cannot be read as .jsonl .row 2: not UTF-8"),
    ("a.jsonl", b"\xff\xfe\xd8\xd8", "a.jsonl cannot be read as .jsonl .after row 0: not UTF-16"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl cannot be read as .jsonl .row 1: not JSON"),
    ("a.jsonl", b'{"content": ' + b"1" * 5000 + b"}", "a.jsonl cannot be read as .jsonl .row 1: not JSON"),
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
