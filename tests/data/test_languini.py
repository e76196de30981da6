"""Languini books: the dealing, the streams and the windows against materialised ones."""

import errno
import json
import os
import pathlib
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from entropy_attn import config as config_lib
from entropy_attn.data import identity, languini, pipeline
from entropy_attn.errors import UserError

_LENGTHS = st.lists(st.integers(1, 60), min_size=4, max_size=14)


def _write(root, train, test, seed=0):
  """Books of the given lengths; returns the tokens of each by split."""
  rng = np.random.default_rng(seed)
  books = {}
  for split, lengths in (("train", train), ("test_iid", test)):
    books[split] = [rng.integers(3, 64, n).astype(np.uint16) for n in lengths]
    rows = np.array([(f"{split}/book{i}", str(n)) for i, n in enumerate(lengths)])
    (root / "books_64" / split).mkdir(parents=True, exist_ok=True)
    np.save(root / f"file_list_{split}.npy", rows)
    for i, tokens in enumerate(books[split]):
      np.save(root / "books_64" / split / f"book{i}.npy", tokens)
  languini._open_book.cache_clear()
  return books


def _config(root, length=8, batch_size=4, last_n=0):
  config = config_lib.languini()
  config.model.update(context_length=length, vocab_size=64)
  config.train.update(batch_size=batch_size, accumulation=1)
  config.eval.update(batch_size=3, last_n=last_n)
  config.data.path = str(root)
  return config


def _joined(books):
  return np.concatenate([part for tokens in books for part in (tokens, [2])]).astype(np.int64)


def _dealt(books, streams):
  """Languini Kitchen's streams, token by token."""
  rows, totals = [[] for _ in range(streams)], np.zeros(streams, int)
  for tokens in books:
    shortest = int(np.argmin(totals))
    rows[shortest].append(tokens)
    totals[shortest] += len(tokens)
  return [_joined(row) for row in rows]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), st.integers(1, 20))
def test_dealing_goes_to_the_first_of_the_shortest(lengths, streams):
  expected, totals = [[] for _ in range(streams)], np.zeros(streams, int)
  for book, length in enumerate(lengths):
    shortest = int(np.argmin(totals))
    expected[shortest].append(book)
    totals[shortest] += length
  assert languini.deal(lengths, streams) == expected


@settings(deadline=None, max_examples=25)
@given(_LENGTHS, st.integers(1, 4), st.integers(1, 11))
def test_training_follows_the_materialised_streams(tmp_path_factory, lengths, batch_size, length):
  root = tmp_path_factory.mktemp("books")
  books = _write(root, lengths, [20])
  config = _config(root, max(length, 2), batch_size)
  length = config.model.context_length
  dataset = pipeline.prepare(config)
  streams = _dealt(books["train"], batch_size)
  steps = -(-max(map(len, streams)) // length)
  assert len(dataset.train) == steps * batch_size
  assert not dataset.shuffle
  iterator = pipeline.train_iterator(dataset, config)
  for step in range(steps + 2):  # two batches of the second epoch
    batch = next(iterator)
    for row, stream in enumerate(streams):
      expected = np.take(stream, np.arange(length + 1) + step % steps * length, mode="wrap")
      np.testing.assert_array_equal(batch["inputs"][row], expected[:-1])
      np.testing.assert_array_equal(batch["targets"][row], expected[1:])
  assert batch["weights"].all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(2, 12), st.data())
def test_windows_predict_each_token_once(tmp_path_factory, lengths, length, data):
  last_n = data.draw(st.integers(0, length))
  root = tmp_path_factory.mktemp("books")
  stream = _joined(_write(root, [9] * 4, lengths)["test_iid"])
  config = _config(root, length, last_n=last_n)
  dataset = pipeline.prepare(config)
  batches = list(pipeline.eval_batches(dataset, config))
  assert len(batches) == pipeline.eval_batch_count(dataset, config)
  weights, targets, inputs = (np.concatenate([b[k] for b in batches]) for k in ("weights", "targets", "inputs"))
  np.testing.assert_array_equal(targets[weights == 1], stream[1:])
  assert weights.sum() == len(stream) - 1
  positions = np.cumsum(weights.ravel()).reshape(weights.shape).astype(int) - 1
  np.testing.assert_array_equal(inputs[weights == 1], stream[positions[weights == 1]])
  if last_n:  # context of at least T - last_n tokens, past the first window
    rows, columns = np.nonzero(weights)
    assert (columns[rows > 0] >= length - last_n).all()


def test_a_read_takes_its_own_tokens_alone(tmp_path, monkeypatch):
  books, taken, pread = _write(tmp_path, [50] * 4, [20]), [], os.pread
  monkeypatch.setattr(os, "pread", lambda *args: taken.append(args[1]) or pread(*args))
  book = languini._open_book(tmp_path / "books_64", "train/book0", 50)
  np.testing.assert_array_equal(book.read(7, 9), books["train"][0][7:16])
  assert taken == [18]


_READ_ALL = """
import resource, sys
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
import pathlib
from entropy_attn import config as config_lib
from entropy_attn.data import pipeline
config = config_lib.languini()
config.model.update(context_length=8, vocab_size=64)
config.train.update(batch_size=4, accumulation=1)
config.data.path = sys.argv[1]
dataset = pipeline.prepare(config)
for _ in range(2):
  rows = dataset.train.batch(range(len(dataset.train)))
print(len(rows["inputs"]))
"""


@pytest.mark.parametrize("limit", [256, 1024])
def test_more_books_than_a_process_may_open(tmp_path, limit):
  _write(tmp_path, [9] * 1200, [20])
  arguments = [sys.executable, "-c", _READ_ALL, str(tmp_path), str(limit)]
  done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2])
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) == 4 * -(-300 * 10 // 8)


def test_books_that_others_leave_no_descriptor_for_are_opened_after_others_are_closed(tmp_path, monkeypatch):
  books, opened, os_open = _write(tmp_path, [50] * 4, [20]), [], os.open

  def scarce(path, *args, **kwargs):
    if str(path).endswith("book1.npy") and not opened.append(path) and len(opened) == 1:
      raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return os_open(path, *args, **kwargs)

  dataset = pipeline.prepare(_config(tmp_path))
  dataset.train[0]
  monkeypatch.setattr(os, "open", scarce)
  np.testing.assert_array_equal(dataset.train[1]["inputs"], books["train"][1][:8])
  assert languini._open_book.cache_info().currsize == 1


def test_a_book_that_is_cut_while_it_is_read_is_named(tmp_path):
  _write(tmp_path, [5000] * 4, [20])
  dataset = pipeline.prepare(_config(tmp_path))
  dataset.train[0]
  os.truncate(tmp_path / "books_64/train/book0.npy", 200)
  with pytest.raises(UserError, match=r"book0.npy cannot be read .it became shorter"):
    dataset.train[4 * 600]


def test_identity_is_of_the_file_lists(tmp_path):
  _write(tmp_path / "a", [50] * 4, [20])
  _write(tmp_path / "b", [50] * 4, [20])
  _write(tmp_path / "c", [50] * 4, [20, 30])
  first, same, other = (pipeline.prepare(_config(tmp_path / name)) for name in "abc")
  assert first.identity == same.identity
  assert (first.tokenizer, first.token_bytes, first.identity["tokenizer"]) == (None, None, None)
  assert identity.differences(first.identity, other.identity) == [
    "valid: 1 file added (test_iid/book1)", "valid: 3 → 7 sequences", "valid: 20 → 50 tokens", "valid: 1 → 2 documents",
  ]  # fmt: skip
  assert json.loads(json.dumps(first.identity)) == first.identity


def test_the_default_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="languini: data/languini/books_64 is missing"):
    pipeline.prepare(_config(""))


def test_no_book_is_opened_before_it_is_read(tmp_path):
  _write(tmp_path, [50] * 4, [20])
  pipeline.prepare(_config(tmp_path))
  assert languini._open_book.cache_info().currsize == 0


def test_names_may_end_in_npy(tmp_path):
  books = _write(tmp_path, [50] * 4, [20])
  rows = np.load(tmp_path / "file_list_train.npy")
  np.save(tmp_path / "file_list_train.npy", np.array([(f"{name}.npy", n) for name, n in rows]))
  dataset = pipeline.prepare(_config(tmp_path))
  np.testing.assert_array_equal(dataset.train[0]["inputs"], books["train"][0][:8])


@pytest.mark.slow
def test_dealing_the_published_number_of_books_is_quick(tmp_path):
  lengths = np.random.default_rng(0).integers(1_000, 300_000, 158_577)
  dealt = languini.deal(lengths.tolist(), 128)
  totals = [int(lengths[books].sum()) for books in dealt]
  assert sum(map(len, dealt)) == len(lengths)
  assert max(totals) - min(totals) < 300_000


def test_missing_files_are_named_with_what_to_do_instead(tmp_path):
  with pytest.raises(UserError, match="books_64 is missing.*data.path=FOLDER.*PG-19.*data.name=python_source"):
    pipeline.prepare(_config(tmp_path))
  _write(tmp_path, [50] * 4, [20])
  config = _config(tmp_path)
  config.data.eval_split = "test_java"
  with pytest.raises(UserError, match=r"file_list_test_java.npy is missing.*file lists there: test_iid, train"):
    pipeline.prepare(config)
  (tmp_path / "books_64" / "train" / "book0.npy").unlink()
  config = _config(tmp_path)
  with pytest.raises(UserError, match=r"book0.npy is missing"):
    next(pipeline.train_iterator(pipeline.prepare(config), config))


def test_other_vocabularies_and_too_many_streams_are_refused(tmp_path):
  _write(tmp_path, [50] * 4, [20])
  config = _config(tmp_path)
  config.model.vocab_size = 128
  with pytest.raises(UserError, match="has 64 entries but model.vocab_size=128: use --config.model.vocab_size=64"):
    pipeline.prepare(config)
  with pytest.raises(UserError, match="4 training books cannot fill train.batch_size=5 streams"):
    pipeline.prepare(_config(tmp_path, batch_size=5))


def test_damaged_books_are_named(tmp_path):
  _write(tmp_path, [50] * 4, [20])
  np.save(tmp_path / "books_64" / "train" / "book0.npy", np.zeros(49, np.uint16))
  np.save(tmp_path / "books_64" / "train" / "book1.npy", np.full(50, 64, np.uint16))
  dataset = pipeline.prepare(_config(tmp_path))
  with pytest.raises(UserError, match=r"book0.npy holds uint16 of shape \(49,\), its file list says 50 tokens"):
    dataset.train[0]
  with pytest.raises(UserError, match="token 64, beyond model.vocab_size=64"):
    dataset.train[1]
