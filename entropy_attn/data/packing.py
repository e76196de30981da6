"""Documents of tokens → sequences of exactly T tokens."""

from collections.abc import Callable, Iterable, Iterator
import hashlib

import numpy as np

from entropy_attn.errors import UserError


def per_file(documents: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
  """Cuts each document into sequences of its own; a tail shorter than `length` is dropped.

  Args:
    documents: integer arrays of shape [n], any n.
    length: T, at least 1.

  Yields:
    One array [k, T] a document, k = n // T, of the document's dtype; k may be 0.
  """
  for tokens in documents:
    count = len(tokens) // length
    yield tokens[: count * length].reshape(count, length)


def concat(documents: Iterable[np.ndarray], length: int, end_id: int) -> Iterator[np.ndarray]:
  """Joins the documents, each followed by `end_id`, and cuts the stream; the tail of the last one is dropped.

  Args:
    documents: integer arrays of shape [n], any n.
    length: T, at least 1.
    end_id: the end-of-text token.

  Yields:
    One array [k, T] a document, the sequences that it completes; k may be 0.
  """
  carried = None
  for tokens in documents:
    end = np.asarray([end_id], dtype=tokens.dtype)
    stream = np.concatenate([tokens, end] if carried is None else [carried, tokens, end])
    used = len(stream) // length * length
    carried = stream[used:].copy()  # not a view, which would keep the whole document alive
    yield stream[:used].reshape(-1, length)


# How documents become sequences, by data.packing.
PACKINGS = {"per_file": per_file, "concat": concat}


class Packer:
  """The sequences of a corpus's splits, counted as they pass.

  Args:
    documents: split → arrays [n] of tokens, one a document.
    length: T.
    how: one of PACKINGS.
    end_id: the end-of-text token, which concat puts between documents; None: there is none.

  Raises:
    UserError: for concat without an end-of-text token.
  """

  def __init__(self, documents: Callable[[str], Iterable[np.ndarray]], length: int, how: str, end_id: int | None):
    if how == "concat" and end_id is None:
      raise UserError(
        "data.packing=concat needs an end-of-text token, and the vocabulary of data.tokenizer has none: use another "
        "tokenizer, or --config.data.packing=per_file"
      )
    self._documents, self._length = documents, length
    self._options = {"end_id": end_id} if how == "concat" else {}
    self._pack = PACKINGS[how]
    # Of each split whose blocks were asked for; with the digest of all its sequences when they have passed.
    self.counts: dict[str, dict[str, int | str]] = {}

  def blocks(self, split: str) -> Iterator[np.ndarray]:
    """Arrays [k, T], one a document."""
    counts = self.counts[split] = dict.fromkeys(("documents", "too short", "tokens", "sequences"), 0)
    digest = hashlib.blake2b(str(self._length).encode(), digest_size=8)

    def counted() -> Iterator[np.ndarray]:
      for tokens in self._documents(split):
        counts["documents"] += 1
        counts["too short"] += len(tokens) < self._length
        counts["tokens"] += len(tokens)
        yield tokens

    for block in self._pack(counted(), self._length, **self._options):
      counts["sequences"] += len(block)
      digest.update(block.astype("<u4").tobytes())  # whatever type they are stored in
      yield block
    counts["digest"] = digest.hexdigest()


def example(tokens_BxT: np.ndarray) -> dict[str, np.ndarray]:
  """What the model reads and predicts: targets are the tokens one to the left; the last has none and weighs 0.

  Args:
    tokens_BxT: integers [..., T].

  Returns:
    inputs int32 [..., T], targets int32 [..., T], weights float32 [..., T].
  """
  inputs = tokens_BxT.astype(np.int32)
  targets = np.zeros_like(inputs)
  targets[..., :-1] = inputs[..., 1:]
  weights = np.ones(inputs.shape, np.float32)
  weights[..., -1] = 0
  return {"inputs": inputs, "targets": targets, "weights": weights}
