"""A text as token ids in windows of the model's context, and each token's own part of the text.

Letters in array names: N tokens of the text, W windows, B windows of a batch, T tokens of a window.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import sys

import numpy as np

from entropy_attn.data import decoding
from entropy_attn.data.stream import TextStream
from entropy_attn.data.tokenizer import Tokenizer
from entropy_attn.errors import UserError

STDIN = "-"
_SAMPLE = 32  # sequences of a run's own text


@dataclasses.dataclass(frozen=True)
class Windows:
  """Token ids, and the windows in which a model reads them. All windows are of one width.

  Attributes:
    name: of the text, for the user.
    ids_N: int32.
    begins_W: the first token of each window.
    firsts_W: the first row of each window whose token no window before has judged.
    ends_W: where the text of each window ends: no token follows the last one.
    width: T.
  """

  name: str
  ids_N: np.ndarray
  begins_W: np.ndarray
  firsts_W: np.ndarray
  ends_W: np.ndarray
  width: int

  def __len__(self) -> int:
    return len(self.begins_W)

  def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Windows `size` at a time, the last ones padded with copies.

    Yields:
      inputs, targets int32 [B, T]; judged bool [B, T]: rows whose token is judged here; weights float32 [B, T]: 1 where
      such a row has a next token to predict; real float32 [B]: 0 for padding.
    """
    rows_T = np.arange(self.width)
    for at in range(0, len(self), size):
      chosen = np.minimum(np.arange(at, at + size), len(self) - 1)
      real_B = np.arange(at, at + size) < len(self)
      places_BxT = self.begins_W[chosen, None] + rows_T
      judged_BxT = (rows_T >= self.firsts_W[chosen, None]) & real_B[:, None]
      followed_BxT = places_BxT + 1 < self.ends_W[chosen, None]
      yield {
        "inputs": self.ids_N[places_BxT],
        "targets": self.ids_N[np.where(followed_BxT, places_BxT + 1, 0)],
        "judged": judged_BxT,
        "weights": (judged_BxT & followed_BxT).astype(np.float32),
        "real": real_B.astype(np.float32),
      }

  def spread(self, count: int, length: int) -> np.ndarray:
    """At most `count` windows, evenly spread over the text, cut to their first `length` tokens: int32 [S, length]."""
    chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
    return self.ids_N[self.begins_W[chosen, None] + np.arange(min(length, self.width))]


def of_ids(name: str, ids: Sequence[int], context: int) -> Windows:
  """One text in windows of `context` tokens that overlap by half.

  Each token is judged once: in the first window that holds it. Beyond the first window a token has at least half a
  context before it. The last window ends where the text does, and overlaps more. A text that is shorter than the
  context is one window.

  Raises:
    UserError: for fewer than two tokens.
  """
  ids_N = np.asarray(ids, np.int32)
  if len(ids_N) < 2:
    raise UserError(f"{name} has {len(ids_N)} token{'' if len(ids_N) == 1 else 's'}: two or more are needed")
  width = min(context, len(ids_N))
  begins_W = np.append(np.arange(0, len(ids_N) - width, max(1, width - width // 2)), len(ids_N) - width)
  firsts_W = np.append(0, begins_W[:-1] + width - begins_W[1:])
  return Windows(name, ids_N, begins_W, firsts_W, np.full(len(begins_W), len(ids_N)), width)


def of_sequences(name: str, sequences_SxT: np.ndarray) -> Windows:
  """Sequences that are texts of their own, a window each."""
  S, T = sequences_SxT.shape
  begins_W = np.arange(S) * T
  return Windows(name, np.asarray(sequences_SxT, np.int32).reshape(-1), begins_W, np.zeros(S, int), begins_W + T, T)


def open_windows(model, path: pathlib.Path | None) -> tuple[Windows, Tokenizer]:
  """The text of a file, or of standard input, or a model's own, and the tokenizer that it is read by.

  Args:
    model: a `run.pretrained.Pretrained`.
    path: of the file; "-": standard input; None: the validation text that the model's run keeps.

  Raises:
    UserError: where there is no such text, or no tokenizer, or they do not fit the model.
  """
  tokenizer, c = model.tokenizer, model.config.model
  if tokenizer is None:
    raise UserError("this model has no tokenizer, so that no text can be read for it: put its tokenizer.json beside it")
  if path is not None:
    name = "standard input" if str(path) == STDIN else str(path)
    windows = of_ids(name, tokenizer.encode_batch([read(path)])[0], c.context_length)
  elif model.folder is None:
    raise UserError("--text=FILE is missing: this model has no text of its own")
  else:
    windows = of_sequences("its own validation text", model.sequences(_SAMPLE, c.context_length))
  largest = int(windows.ids_N.max())
  if largest >= c.vocab_size:
    raise UserError(f"the tokenizer makes token {largest}, and the model's vocabulary has {c.vocab_size} entries")
  return windows, tokenizer


def read(path: pathlib.Path) -> str:
  """The text of a file, or of standard input for "-".

  Raises:
    UserError: where it cannot be read, is empty, or is no UTF-8.
  """
  try:
    content = sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()
    text = decoding.text_of(content)
  except OSError as error:
    raise UserError(f"--text={path} cannot be read: {error.strerror or error}: name another file") from error
  except UnicodeDecodeError as error:
    raise UserError(f"--text={path} is {decoding.reason(error)}: convert it, or name another file") from error
  if not text:
    raise UserError(f"--text={path} is empty: name a file with text")
  return text


def strings(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
  """The part of the text that each token adds; together they are the text.

  A character of several tokens is its last one's, and those before it add nothing.
  """
  stream = TextStream(tokenizer.decode, ())
  found = [stream.push(int(i)) for i in ids]
  if found:
    found[-1] += stream.close()
  return found
