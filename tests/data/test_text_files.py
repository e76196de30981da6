"""Corpora of files: what is in, what is left out, and in which split."""

import pathlib
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from entropy_attn.data import pipeline, text_files
from entropy_attn.errors import UserError
from tests.data.conftest import make_config


def _both(corpus):
  return {split: list(corpus.documents(split)) for split in ("train", "valid")}


def _text_config(tmp_path, folder, **fields):
  return make_config(tmp_path / "built", data__name="text_files", data__path=str(folder), **fields)


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_split_is_a_partition_with_both_parts(names, fraction):
  names = sorted(names)
  split = text_files.split_by_name(names, fraction)
  assert sorted(split["train"] + split["valid"]) == names
  assert split["train"]
  assert split["valid"]
  assert split["train"] == sorted(split["train"])


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), min_size=30, max_size=60), st.data())
def test_a_new_file_moves_no_other(names, data):
  names = sorted(names)
  new = data.draw(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda n: n not in names))
  before, after = text_files.split_by_name(names, 0.5), text_files.split_by_name([*names, new], 0.5)
  assert set(before["train"]) == set(after["train"]) - {new}


def test_duplicates_and_other_encodings_are_left_out_and_counted(folder, texts):
  (folder / "copy.txt").write_text(texts[0])
  (folder / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
  (folder / ".hidden").write_text("hidden")
  corpus = text_files.text_files(str(folder), 0.3)
  found = _both(corpus)
  assert sorted(found["train"] + found["valid"]) == sorted(set(texts))
  assert corpus.skipped == {"duplicate": 1, "not UTF-8": 1}


def test_fingerprint_follows_files_and_split(folder):
  first = text_files.text_files(str(folder), 0.3).fingerprint
  assert text_files.text_files(str(folder), 0.3).fingerprint == first
  assert text_files.text_files(str(folder), 0.2).fingerprint != first
  (folder / "new.txt").write_text("new")
  assert text_files.text_files(str(folder), 0.3).fingerprint != first


def test_a_glob_takes_what_it_matches(folder, texts):
  corpus = text_files.text_files(str(folder / "more" / "*.txt"), 0.3)
  found = _both(corpus)
  assert sorted(found["train"] + found["valid"]) == sorted(t for i, t in enumerate(texts) if i % 3)


def test_python_source_leaves_tests_and_packages_out():
  corpus = text_files.python_source(False, 0.02)
  names = corpus._files  # pylint: disable=protected-access
  assert "stdlib/argparse.py" in names
  assert not [n for n in names if re.search(r"/(test|tests|idle_test|site-packages|dist-packages)/", n)]
  assert set(names) < set(text_files.python_source(True, 0.02)._files)


@pytest.mark.parametrize("packing", ["per_file", "concat"])
def test_sequences_decode_to_the_documents(tmp_path, folder, texts, packing):
  config = _text_config(tmp_path, folder, data__packing=packing, data__valid_fraction=0.2)
  dataset = pipeline.prepare(config)
  tokenizer = pipeline.open_tokenizer(config)
  corpus = text_files.text_files(str(folder), 0.2)
  for split, source in (("train", dataset.train), ("valid", dataset.valid)):
    documents = list(corpus.documents(split))
    tokens = np.concatenate([source[i]["inputs"] for i in range(len(source))])
    if packing == "concat":
      whole = "".join(text + "<|endoftext|>" for text in documents)
      assert whole.startswith(tokenizer.decode(tokens))
      assert len(whole) - len(tokenizer.decode(tokens)) < 400
      continue
    position = 0
    for text in documents:
      kept = len(tokenizer.encode_batch([text])[0]) // 32 * 32
      assert text.startswith(tokenizer.decode(tokens[position : position + kept]).rstrip("�"))
      position += kept
    assert position == len(tokens)


def test_missing_empty_and_single_file_are_refused(tmp_path, texts):
  for path, message in (
    ("", "needs text: --config.data.path=FOLDER"),
    (tmp_path / "none", "none' does not exist"),
    (tmp_path / "*.nothing", "holds no file"),
  ):
    with pytest.raises(UserError, match=message):
      pipeline.prepare(_text_config(tmp_path, path))
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(UserError, match="holds no file"):
    pipeline.prepare(_text_config(tmp_path, empty))
  (empty / "one.txt").write_text(texts[0])
  with pytest.raises(UserError, match="1 readable, distinct text file.*at least two"):
    pipeline.prepare(_text_config(tmp_path, empty))


def test_too_little_text_is_refused(tmp_path):
  folder = tmp_path / "short"
  folder.mkdir()
  for i in range(5):
    (folder / f"{i}.txt").write_text(f"file {i}, hardly any words in it")
  with pytest.raises(UserError, match=r"too small for a vocabulary of 2048.*--config.model.vocab_size=\d+"):
    pipeline.prepare(_text_config(tmp_path, folder, model__vocab_size=2048))
  with pytest.raises(UserError, match="cannot hold the 256 bytes"):
    pipeline.prepare(_text_config(tmp_path, folder, model__vocab_size=200))
  with pytest.raises(UserError, match="no document of the train split has model.context_length=512 tokens"):
    pipeline.prepare(_text_config(tmp_path, folder, model__vocab_size=260, model__context_length=512))


def test_unreadable_file_is_named(tmp_path, folder, monkeypatch):
  broken = sorted(folder.rglob("*.txt"))[0]
  read = pathlib.Path.read_bytes

  def refuse(path):
    if path == broken:
      raise PermissionError(13, "Permission denied")
    return read(path)

  monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
  with pytest.raises(UserError, match=f"{broken.name} cannot be read .Permission denied"):
    pipeline.prepare(_text_config(tmp_path, folder))
