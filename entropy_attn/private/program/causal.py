"""The causal part of N queries × M keys, row by row: E entries, of which the last row has M, the one before M − 1, …"""

import math

import numpy as np


def row_lengths(length: int, keys: int) -> np.ndarray:
  """How many keys each of the last `length` of `keys` positions may attend to, [length]."""
  return np.arange(keys - length + 1, keys + 1)


def allowed(length: int, keys: int) -> np.ndarray:
  """Where each of the last `length` of `keys` positions may look: booleans [length, keys]."""
  return row_lengths(length, keys)[:, None] > np.arange(keys)


def entries(length: int, keys: int) -> np.ndarray:
  """Where the causal entries lie in a flattened [length, keys]: indices [E]."""
  return np.flatnonzero(allowed(length, keys))


def queries(entries: int, keys: int) -> int:
  """N, of how many entries and keys there are: E = N (2 M − N + 1) / 2."""
  return (2 * keys + 1 - math.isqrt((2 * keys + 1) ** 2 - 8 * entries)) // 2


def spread(row_HxN, entries: int):
  """A number of each row for each of its entries, [H, E]."""
  N = row_HxN.shape[1]
  keys = (2 * entries + N * (N - 1)) // (2 * N)
  return row_HxN[:, np.repeat(np.arange(N), row_lengths(N, keys))]


def filled(e_HxE, keys: int, xp):
  """[H, N, M] of the causal entries [H, E], and 0 elsewhere.

  Args:
    xp: the array library, `numpy` or `jax.numpy`.
  """
  H, E = e_HxE.shape
  N = queries(E, keys)
  back = np.full(N * keys, E)  # where nothing is allowed: a zero put behind the entries
  back[entries(N, keys)] = np.arange(E)
  e_HxE = xp.concatenate([e_HxE, xp.zeros((H, 1), e_HxE.dtype)], axis=1)
  return e_HxE[:, back].reshape(H, N, keys)
