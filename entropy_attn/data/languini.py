"""Languini books: tokenised books read in place, dealt to the streams of a batch.

On disk, below data.path: `file_list_{train,test_iid,…}.npy`, rows of (path, tokens); `books_{V}/<path>.npy`, one array
of token ids a book. Nothing is copied and no book is opened before one of its tokens is asked for.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import errno
import functools
import heapq
import os
import pathlib

import numpy as np

from entropy_attn import paths
from entropy_attn.data import identity, tokenizer
from entropy_attn.errors import UserError

FOLDER = "data/languini"  # where data.path is empty
END_OF_DOCUMENT = 2  # <D>


def _open_at_once() -> int:
  """How many books stay open: a quarter of the descriptors that this process may have."""
  try:
    import resource
  except ImportError:  # not a Unix
    return 128
  limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  return 4096 if limit == resource.RLIM_INFINITY else max(8, min(4096, limit // 4))


@dataclasses.dataclass(frozen=True)
class Stream:
  """Books in a row, each followed by <D>.

  Attributes:
    names: of the books, in order.
    starts: int64 [books + 1], where each book begins; the last is the length of the stream.
  """

  names: Sequence[str]
  starts: np.ndarray

  def __len__(self) -> int:
    return int(self.starts[-1])

  def read(self, folder: pathlib.Path, start: int, count: int) -> np.ndarray:
    """Tokens int32 [count] from position `start`; the stream goes round, and begins again after its last <D>."""
    tokens = np.empty(count, np.int32)
    done, position = 0, start % len(self)
    while done < count:
      book = int(np.searchsorted(self.starts, position, side="right")) - 1
      first, last = position - int(self.starts[book]), int(self.starts[book + 1] - self.starts[book]) - 1
      taken = min(last - first, count - done)
      tokens[done : done + taken] = _open_book(folder, self.names[book], last).read(first, taken)
      done += taken
      if done < count:
        tokens[done] = END_OF_DOCUMENT
        done += 1
      position = int(self.starts[book + 1]) % len(self)
    return tokens


def deal(lengths: Iterable[int], streams: int) -> list[list[int]]:
  """Deals books in order, each to the stream with the fewest tokens so far; of several, to the first.

  The <D> between books are not counted, as in Languini Kitchen.

  Returns:
    The indices of the books of each stream.
  """
  dealt: list[list[int]] = [[] for _ in range(streams)]
  totals = [(0, stream) for stream in range(streams)]  # a heap as it stands
  for book, length in enumerate(lengths):
    total, stream = totals[0]
    dealt[stream].append(book)
    heapq.heapreplace(totals, (total + length, stream))
  return dealt


class Streams:
  """Training sequences: element s * B + b is row b of batch s, tokens s*T to s*T + T (T + 1 of them) of stream b.

  One epoch ends when the longest stream has been read; until then a shorter one begins again at its first book. The
  next epoch begins every stream anew, where Languini Kitchen would go round in each on its own: the two differ only
  after all the books have been read.
  """

  def __init__(self, folder: pathlib.Path, streams: Sequence[Stream], length: int, vocab_size: int):
    self._folder = folder
    self._streams = streams
    self._length = length
    self._vocab_size = vocab_size

  def __len__(self) -> int:
    return -(-max(map(len, self._streams)) // self._length) * len(self._streams)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f"sequence {index} of {len(self)}")
    step, row = divmod(index, len(self._streams))
    tokens = self._streams[row].read(self._folder, step * self._length, self._length + 1)
    _check_ids(tokens, self._vocab_size)
    return {"inputs": tokens[:-1], "targets": tokens[1:], "weights": np.ones(self._length, np.float32)}

  def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """inputs int32 [B, T], targets int32 [B, T], weights float32 [B, T] of the sequences at `indices`."""
    return stack([self[int(i)] for i in indices])


class Windows:
  """Evaluation sequences: windows over one stream, in which each token but the first is predicted exactly once.

  Window w begins at token w * stride. The first counts all its predictions, the others their last `stride` alone: with
  stride = T every prediction counts; a smaller one gives each token at least T - stride tokens of context. Past the end
  of the stream inputs and targets are <pad> (0) and weigh 0.
  """

  def __init__(self, folder: pathlib.Path, stream: Stream, length: int, stride: int, vocab_size: int):
    self._folder = folder
    self._stream = stream
    self._length = length
    self._stride = stride
    self._vocab_size = vocab_size

  def __len__(self) -> int:
    predictions = len(self._stream) - 1
    return 1 + max(0, -(-(predictions - self._length) // self._stride))

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f"window {index} of {len(self)}")
    start = index * self._stride
    found = min(self._length + 1, len(self._stream) - start)
    tokens = np.zeros(self._length + 1, np.int32)
    tokens[:found] = self._stream.read(self._folder, start, found)
    _check_ids(tokens, self._vocab_size)
    weights = np.zeros(self._length, np.float32)
    weights[0 if index == 0 else self._length - self._stride : found - 1] = 1
    return {"inputs": tokens[:-1], "targets": tokens[1:], "weights": weights}

  def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """inputs int32 [B, T], targets int32 [B, T], weights float32 [B, T] of the windows at `indices`."""
    return stack([self[int(i)] for i in indices])


def open_books(config) -> tuple[Streams, Windows, str, dict[str, dict]]:
  """Opens the books of data.path.

  Returns:
    The training streams (as many as train.batch_size), the evaluation windows, a line that describes them, and
    `identity.of_split` of each split: the digest is of the file list, since no book is read before it is asked for.

  Raises:
    UserError: when files are missing, the vocabulary is another, or there are fewer books than streams.
  """
  data, length, vocab_size = config.data, config.model.context_length, config.model.vocab_size
  root = paths.expand(data.path or FOLDER, "data.path")
  folder = _books_folder(root, vocab_size)
  train_names, train_lengths = _file_list(root, "train")
  valid_names, valid_lengths = _file_list(root, data.eval_split)
  streams = config.train.batch_size
  if len(train_names) < streams:
    raise UserError(
      f"languini: {len(train_names)} training books cannot fill train.batch_size={streams} streams: "
      f"use --config.train.batch_size={len(train_names)} or fewer"
    )
  dealt = deal(train_lengths.tolist(), streams)
  train = Streams(folder, [_stream(train_names, train_lengths, books) for books in dealt], length, vocab_size)
  whole = _stream(valid_names, valid_lengths, range(len(valid_names)))
  valid = Windows(folder, whole, length, config.eval.last_n or length, vocab_size)
  description = (
    f"languini: {len(train_names)} books, {int(train_lengths.sum())} tokens in {streams} streams; "
    f"{data.eval_split}: {len(valid_names)} books, {int(valid_lengths.sum())} tokens in {len(valid)} windows"
  )
  parts = {
    "train": _identity(train_names, train_lengths, length, len(train)),
    "valid": _identity(valid_names, valid_lengths, length, len(valid)),
  }
  return train, valid, description, parts


def _identity(names: list[str], lengths: np.ndarray, length: int, sequences: int) -> dict:
  rows = list(zip(names, lengths.tolist(), strict=True))
  counts = {"sequences": sequences, "tokens": lengths.sum(), "documents": len(rows)}
  return identity.of_split(counts, identity.digest_of([length, *rows]), {name: f"{n} tokens" for name, n in rows})


def stack(records: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Dicts of [T] arrays → one dict of [B, T] arrays."""
  return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _stream(names: Sequence[str], lengths: np.ndarray, books: Sequence[int]) -> Stream:
  books = np.asarray(books, np.int64)
  return Stream([names[i] for i in books], np.concatenate([[0], np.cumsum(lengths[books] + 1)]))


def _books_folder(root: pathlib.Path, vocab_size: int) -> pathlib.Path:
  folder = root / f"books_{vocab_size}"
  if not os.path.isdir(folder):
    for other in sorted(root.glob("books_*")):
      if other.is_dir() and (size := other.name.removeprefix("books_")).isdigit():
        tokenizer.check_vocab_size(int(size), vocab_size, f"languini: the vocabulary of {other}")
    raise UserError(_missing(folder))
  return folder


def _file_list(root: pathlib.Path, split: str) -> tuple[list[str], np.ndarray]:
  """Names and lengths int64 [books] of a split's books."""
  path = root / f"file_list_{split}.npy"
  if not os.path.isfile(path):
    found = ", ".join(sorted(p.stem.removeprefix("file_list_") for p in root.glob("file_list_*.npy")))
    raise UserError(_missing(path) + (f" (the file lists there: {found})" if found else ""))
  try:
    rows = np.load(path)
    names, lengths = [str(name) for name in rows[:, 0]], rows[:, 1].astype(np.int64)
  except OSError as error:
    raise UserError(_unreadable(path, error.strerror or error)) from error
  except (ValueError, IndexError, EOFError) as error:
    raise UserError(f"{path} is not an array of (path, length) rows: copy it again from Languini Kitchen") from error
  if not names or lengths.min() < 1:
    raise UserError(f"{path} lists no book, or an empty one: copy it again from Languini Kitchen")
  return names, lengths


class _Book:
  """One book, open: read by position, so that no more than is asked for is read, and a cut file is an error."""

  def __init__(self, path: pathlib.Path, length: int):
    self._path = path
    self._descriptor = -1
    try:
      mapped_n = np.load(path, mmap_mode="r")
      shape, self._dtype, self._offset = mapped_n.shape, mapped_n.dtype, getattr(mapped_n, "offset", 0)
      del mapped_n  # it would hold a descriptor, and end the process where the file becomes shorter
      self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
      raise UserError(_missing(path)) from error
    except OSError as error:
      if error.errno in (errno.EMFILE, errno.ENFILE):
        raise
      raise UserError(_unreadable(path, error.strerror or error)) from error
    except (ValueError, EOFError) as error:
      raise UserError(f"{path} is not an array of token ids ({error}): tokenise this book again") from error
    if shape != (length,) or self._dtype.kind not in "iu":
      raise UserError(
        f"{path} holds {self._dtype} of shape {shape}, its file list says {length} tokens: tokenise this book again"
      )

  def __del__(self):
    if self._descriptor >= 0:
      os.close(self._descriptor)

  def read(self, first: int, count: int) -> np.ndarray:
    """Tokens [count] from position `first`."""
    wanted, start = count * self._dtype.itemsize, self._offset + first * self._dtype.itemsize
    content = b""
    while len(content) < wanted:
      try:
        part = os.pread(self._descriptor, wanted - len(content), start + len(content))
      except OSError as error:
        raise UserError(_unreadable(self._path, error.strerror)) from error
      if not part:
        raise UserError(_unreadable(self._path, "it became shorter"))
      content += part
    return np.frombuffer(content, self._dtype)


@functools.lru_cache(maxsize=_open_at_once())
def _open_book(folder: pathlib.Path, name: str, length: int) -> _Book:
  path = folder / (name if name.endswith(".npy") else f"{name}.npy")
  try:
    return _Book(path, length)
  except OSError:  # others took the descriptors
    _open_book.cache_clear()
  try:
    return _Book(path, length)
  except OSError as error:
    raise UserError(f"languini: {path} cannot be opened ({error.strerror}): raise the limit with ulimit -n") from error


def _check_ids(tokens: np.ndarray, vocab_size: int) -> None:
  if (largest := int(tokens.max())) >= vocab_size:
    raise UserError(f"languini: a book holds the token {largest}, beyond model.vocab_size={vocab_size}")


def _unreadable(path: pathlib.Path, reason) -> str:
  return f"languini: {path} cannot be read ({reason}): mend it, and run the same command again"


def _missing(path: pathlib.Path) -> str:
  return (
    f"languini: {path} is missing. Put the tokenised books of Languini Kitchen (file_list_*.npy and books_V/) in a "
    "folder and set --config.data.path=FOLDER; where you lack them, an open stand-in such as PG-19 works with "
    "--config.data.name=text_files, and --config.data.name=python_source trains the same model today"
  )
