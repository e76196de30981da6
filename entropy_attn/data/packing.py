"""Documents of tokens → sequences of exactly T tokens."""

from collections.abc import Iterable, Iterator

import numpy as np


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
