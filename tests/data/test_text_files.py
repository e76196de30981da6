"""Corpora of files: what is in, what is left out, and in which split."""

import json
import pathlib
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from entropy_attn import owned
from entropy_attn.data import pipeline, splits, text_files
from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.errors import UserError
from tests.data.small_configs import make_config, of_files


def _both(corpus):
  return {split: list(corpus.documents(split)) for split in ("train", "valid")}


def _corpus(folder, **fields):
  return text_files.text_files(of_files(pathlib.Path("unused"), folder, **fields).data)


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_split_is_a_partition_with_both_parts(names, fraction):
  names = sorted(names)
  split = splits.by_hash(names, fraction)
  assert sorted(split["train"] + split["valid"]) == names
  assert split["train"]
  assert split["valid"]
  assert split["train"] == sorted(split["train"])


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), min_size=30, max_size=60), st.data())
def test_a_new_file_moves_no_other(names, data):
  names = sorted(names)
  new = data.draw(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda n: n not in names))
  before, after = splits.by_hash(names, 0.5), splits.by_hash([*names, new], 0.5)
  assert set(before["train"]) == set(after["train"]) - {new}


def test_duplicates_and_other_encodings_are_left_out_and_counted(folder, texts):
  (folder / "copy.txt").write_text(texts[0])
  (folder / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
  (folder / ".hidden").write_text("hidden")
  corpus = _corpus(folder, data__valid_fraction=0.3)
  found = _both(corpus)
  assert sorted(found["train"] + found["valid"]) == sorted(set(texts))
  assert +corpus.skipped == {"duplicate": 1, "not UTF-8": 1}


def test_fingerprint_follows_files_and_split(folder):
  first = _corpus(folder, data__valid_fraction=0.3).fingerprint
  assert _corpus(folder, data__valid_fraction=0.3).fingerprint == first
  assert _corpus(folder, data__valid_fraction=0.2).fingerprint != first
  (folder / "new.txt").write_text("new")
  assert _corpus(folder, data__valid_fraction=0.3).fingerprint != first


def test_a_glob_takes_what_it_matches(folder, texts):
  corpus = _corpus(folder / "more" / "*.txt", data__valid_fraction=0.3)
  found = _both(corpus)
  assert sorted(found["train"] + found["valid"]) == sorted(t for i, t in enumerate(texts) if i % 3)


def test_python_source_leaves_tests_and_packages_out():
  names = text_files.python_source(make_config("unused").data)._files
  assert "stdlib/argparse.py" in names
  assert not [n for n in names if re.search(r"/(test|tests|idle_test|site-packages|dist-packages)/", n)]
  assert set(names) < set(text_files.python_source(make_config("unused", data__include_site_packages=True).data)._files)


@pytest.mark.parametrize("packing", ["per_file", "concat"])
def test_sequences_decode_to_the_documents(tmp_path, folder, texts, packing):
  config = of_files(tmp_path, folder, data__packing=packing, data__valid_fraction=0.2)
  dataset = pipeline.prepare(config)
  tokenizer = pipeline.open_tokenizer(config)
  corpus = _corpus(folder, data__valid_fraction=0.2)
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
    (tmp_path / ("x" * 300), "x' does not exist"),
    (tmp_path / "*.nothing", "holds no file"),
  ):
    with pytest.raises(UserError, match=message):
      pipeline.prepare(of_files(tmp_path, path))
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(UserError, match="holds no file"):
    pipeline.prepare(of_files(tmp_path, empty))
  (empty / "one.txt").write_text(texts[0])
  with pytest.raises(UserError, match="1 readable, distinct text file.*at least two; add files"):
    pipeline.prepare(of_files(tmp_path, empty))


def test_too_little_text_is_refused(tmp_path):
  folder = tmp_path / "short"
  folder.mkdir()
  for i in range(5):
    (folder / f"{i}.txt").write_text(f"file {i}, hardly any words in it")
  with pytest.raises(UserError, match=r"too small for a vocabulary of 2048.*--config.model.vocab_size=\d+"):
    pipeline.prepare(of_files(tmp_path, folder, model__vocab_size=2048))
  with pytest.raises(UserError, match="cannot hold the 256 bytes"):
    pipeline.prepare(of_files(tmp_path, folder, model__vocab_size=200))
  with pytest.raises(UserError, match="no document of the train split has model.context_length=512 tokens"):
    pipeline.prepare(of_files(tmp_path, folder, model__vocab_size=260, model__context_length=512))


def test_unreadable_file_is_named(tmp_path, folder, monkeypatch):
  broken = sorted(folder.rglob("*.txt"))[0]
  read = pathlib.Path.read_bytes

  def refuse(path):
    if path == broken:
      raise PermissionError(13, "Permission denied")
    return read(path)

  monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
  with pytest.raises(UserError, match=f"{broken.name} cannot be read .Permission denied"):
    pipeline.prepare(of_files(tmp_path, folder))


def test_the_first_files_of_the_shuffle_are_taken(folder):
  whole = _corpus(folder, data__valid_fraction=0.3)
  cut = _corpus(folder, data__valid_fraction=0.3, data__max_train_files=5, data__max_valid_files=2)
  both, fewer = _both(whole), _both(cut)
  for split, count in (("train", 5), ("valid", 2)):
    order = np.random.default_rng(0).permutation(len(both[split]))
    assert fewer[split] == [both[split][i] for i in sorted(order[:count])]
    assert cut.skipped[f"beyond data.max_{split}_files"] == len(both[split]) - count
    assert whole.skipped[f"beyond data.max_{split}_files"] == 0
  assert cut.fingerprint != whole.fingerprint


def test_python_source_is_cut_too():
  config = make_config("unused", data__max_train_files=7, data__max_valid_files=3)
  corpus = text_files.python_source(config.data)
  assert [len(texts) for texts in _both(corpus).values()] == [7, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(folder, texts, encoding):
  for path in sorted(folder.rglob("*.txt"))[::2]:
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
  (folder / "copy.txt").write_bytes(texts[0].encode("utf-16"))
  corpus = _corpus(folder)
  found = _both(corpus)
  assert sorted(found["train"] + found["valid"]) == sorted(set(texts))
  assert +corpus.skipped == {"duplicate": 1}


@pytest.mark.parametrize(
  ("encoding", "text"),
  [("latin-1", "déjà vu"), ("utf-16-le", "déjà vu"), ("utf-16-le", "plain"), ("utf-16-be", "plain")],
)
def test_other_encodings_are_the_reason_that_is_given(tmp_path, encoding, text):
  (tmp_path / "foreign").mkdir()
  for i in range(40):
    (tmp_path / f"foreign/{i}.txt").write_bytes(f"{text} {i}".encode(encoding))
  with pytest.raises(UserError, match=r"40 files: not UTF-8.*iconv"):
    pipeline.prepare(of_files(tmp_path, tmp_path / "foreign"))


def test_which_file_became_what_is_said(tmp_path, texts, capfd):
  folder = _named_folder(tmp_path, texts, ["train.txt", "val.txt", "test.txt"])
  pipeline.prepare(of_files(tmp_path, folder))
  said = "text_files: split by the files' names: train: train.txt; valid: val.txt; left out: test.txt (test)"
  assert capfd.readouterr().err.count(said) == 1


def test_empty_files_nul_bytes_and_line_ends_do_no_harm(tmp_path, folder):
  for name, content in (("empty", b""), ("nul", b"a\0b\r\n" * 99), ("returns", b"x = 1\r\n" * 99)):
    (folder / name).write_bytes(content)
  config = of_files(tmp_path, folder)
  assert len(pipeline.prepare(config).train) > 100


@pytest.mark.parametrize(
  ("name", "word"),
  [
    ("train.jsonl", "train"), ("a/Validation/x.txt", "valid"), ("x-valid-00001.parquet", "valid"), ("val_1", "valid"),
    ("my.dev.txt", "valid"), ("test/a.txt", "test"), ("train/test/a.txt", "test"), ("test/train.txt", "train"),
    ("invalid.py", None), ("latest/x", None), ("testing.py", None), ("contest", None), ("trainer.py", None),
    ("value", None), ("device", None), ("tests/x", None),
  ],
)  # fmt: skip
def test_words_are_whole_and_the_nearest_part_decides(name, word):
  assert splits.word_of(name) == word


def _named_folder(tmp_path, texts, names):
  for name, text in zip(names, texts, strict=False):
    path = tmp_path / "named" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return tmp_path / "named"


@pytest.mark.parametrize(
  "names",
  [
    ["train.txt", "val.txt", "test.txt"],
    ["train/a.txt", "train/b.txt", "dev/a.txt", "test/a.txt", "README.md"],
    ["wiki-train-0.txt", "wiki-validation-0.txt"],
  ],
)
def test_files_that_say_their_split_are_believed(tmp_path, texts, names):
  folder = _named_folder(tmp_path, texts, names)
  corpus = _corpus(folder)
  said = dict(zip(names, texts, strict=False))
  for split, found in _both(corpus).items():
    assert found == [said[name] for name in sorted(names) if splits.word_of(name) == split]
  others = [name for name in names if splits.word_of(name) not in ("train", "valid")]
  assert sum(corpus.left_out.values()) == len(others)
  (note,) = corpus.notes
  assert all(name in note for name in others)
  with pytest.raises(UserError, match="data.valid_fraction=0.2 is unused"):
    _corpus(folder, data__valid_fraction=0.2)


@pytest.mark.parametrize(
  "names",
  [
    ["a.txt", "b.txt", "test/c.txt", "test.py", "d.txt"],  # source code with tests
    ["train.py", "model.py", "dev/tools.py", "run.py", "x.py"],  # and with a train.py
    ["train/a.txt", "train/b.txt"],
    ["valid/a.txt", "valid/b.txt"],
    ["test/a.txt", "test/b.txt"],
  ],
)
def test_words_by_chance_mean_nothing(tmp_path, texts, names):
  corpus = _corpus(_named_folder(tmp_path, texts, names))
  found = _both(corpus)
  assert sorted(found["train"] + found["valid"]) == sorted(texts[: len(names)])
  assert not corpus.notes and not corpus.left_out


@pytest.mark.parametrize(
  ("name", "inside"), [("text_files", "."), ("text_files", "deeper/built"), ("codeparrot", "built")]
)
def test_what_is_built_below_the_text_is_no_text(tmp_path, small, name, inside):
  config = make_config(small / inside, data__name=name, data__path=str(small))
  if name == "codeparrot":
    found = [path.read_text() for path in sorted(small.glob("*.txt"))]
    (small / "rows.json").write_text("".join(json.dumps({"content": text}) + "\n" for text in found))
    (tmp_path / "bpe").mkdir()
    tokenizer_lib.train(found, 300, tmp_path / "bpe/tokenizer.json")
    config.data.tokenizer = str(tmp_path / "bpe")
    config.data.valid_fraction = 0.3
  first = pipeline.prepare(config)
  config.model.context_length = 16
  pipeline.prepare(config)
  config.model.context_length = 32
  again = pipeline.prepare(config)
  assert again.identity == first.identity
  assert len(list((small / inside / "packed_text").glob("*T32*"))) == 1
  config.data.data_dir = str(tmp_path / "elsewhere")  # then the marks alone tell
  assert pipeline.prepare(config).identity == first.identity
  assert "made by entropy_attn itself" in again.description


def test_a_marked_root_is_read(tmp_path, folder, texts):
  owned.mark(tmp_path)
  owned.mark(folder)
  owned.mark(folder / "more")
  found = _both(_corpus(folder))
  assert sorted(found["train"] + found["valid"]) == sorted(t for i, t in enumerate(texts) if i % 3 == 0)
  assert len(_corpus(folder / "more")._files) == len(texts) - len(texts[::3])
  assert _corpus(folder / "**/*.txt").left_out == {"made by entropy_attn itself": 1}


def test_a_text_that_vanishes_is_named(tmp_path, folder):
  corpus = _corpus(folder)
  (folder / "00.txt").unlink()
  with pytest.raises(UserError, match="00.txt cannot be read .No such file"):
    _both(corpus)


def test_without_a_home_folder_it_says_what_to_do(tmp_path, folder, monkeypatch):
  def nobody(path):
    if path.parts[0] == "~":
      raise RuntimeError("Could not determine home directory.")
    return path

  monkeypatch.setattr(pathlib.Path, "expanduser", nobody)
  for field in ("data_dir", "path"):
    config = of_files(tmp_path, folder)
    config.data[field] = "~/x"
    with pytest.raises(UserError, match="the home folder ~ is unknown: set HOME, or write the whole path"):
      pipeline.prepare(config)


def test_home_is_expanded_in_every_path(tmp_path, small, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  tokenizer_lib.train([path.read_text() for path in small.glob("*.txt")], 300, tmp_path / "t.json")
  config = of_files(tmp_path, "~/small", data__tokenizer="~/t.json")
  config.data.data_dir = "~/here"
  pipeline.prepare(config)
  assert (tmp_path / "here/packed_text").is_dir()
  assert len(_corpus("~/small/*.txt")._files) == 8


_NAMES = [
  "a#b",
  "a?b",
  "a%20b",
  "a b",
  "ü",
  "[x]",
  "[!x]",
  "{y}",
  "*",
  "@",
  "x@10",
  "c:d",
  "q'q",
  'q"q',
  "$HOME",
  "a\\b",
]


@pytest.mark.parametrize("name", _NAMES)
def test_any_character_may_be_in_a_path(tmp_path, small, name):
  root = tmp_path / name
  root.mkdir()
  text = small.rename(root / name)
  config = of_files(tmp_path, text)
  config.data.data_dir = str(root / f"built {name}")
  dataset = pipeline.prepare(config)
  assert len(dataset.train) > 100
  assert pipeline.prepare(config).identity == dataset.identity
  kept, content = dataset.tokenizer.file
  (root / kept).write_bytes(content)
  config.data.tokenizer = str(root / kept)
  assert pipeline.open_tokenizer(config).fingerprint == dataset.tokenizer.fingerprint
  for pattern in ("**/*.txt", "*.txt"):
    assert len(_corpus(text / pattern)._files) == len(_corpus(text)._files) == 8


def test_the_one_name_that_tfds_does_not_take_is_refused(tmp_path, small):
  config = of_files(tmp_path, small)
  config.data.data_dir = str(tmp_path / "a**b")
  with pytest.raises(UserError, match="has .... in its name: choose another folder with --config.data.data_dir"):
    pipeline.prepare(config)
