"""The integers of the wide ring, modulo 2^64: numbers with a point as such, and exact products of them."""

import math

import numpy as np

from entropy_attn.private.program.types import FRACTION, WIDE

_MANTISSA = 53  # bits of a float64


def encoded(array: np.ndarray) -> np.ndarray:
  """Numbers with a point as integers of the ring, uint64 of the same shape."""
  return np.rint(np.asarray(array, np.float64) * 2.0 ** FRACTION[WIDE]).astype(np.int64).view(np.uint64)


class Matrix:
  """A matrix [K, L] of numbers with a point, to multiply integers of the ring with.

  Products are by float64, which linear algebra is fast at, of so few bits of x at a time that sums of K are exact.
  """

  def __init__(self, matrix: np.ndarray):
    self._numbers = encoded(matrix).view(np.int64).astype(np.float64)
    largest = max(1.0, float(np.max(np.abs(self._numbers), initial=0.0)))
    self._bits = _MANTISSA - 1 - math.ceil(math.log2(largest * len(matrix)))
    if self._bits < 1:
      raise ValueError(f"a matrix of numbers up to {largest / 2.0 ** FRACTION[WIDE]:g} is none to multiply exactly")

  def times(self, x_MxK: np.ndarray, first: int, end: int) -> np.ndarray:
    """x with some of its columns, [M, end − first] modulo 2^64, uint64.

    Args:
      x_MxK: uint64.
    """
    columns, total = self._numbers[:, first:end], np.zeros((len(x_MxK), end - first), np.uint64)
    for low in range(0, WIDE, self._bits):
      bits = min(self._bits, WIDE - low)
      part = (x_MxK >> np.uint64(low)) & np.uint64(2**bits - 1)
      total += (part.astype(np.float64) @ columns).astype(np.int64).view(np.uint64) << np.uint64(low)
    return total
