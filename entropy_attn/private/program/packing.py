"""How the engine packs a matrix product into ciphertexts.

Letters: M × K times K × L matrices.
"""

import dataclasses
import functools
import math

import numpy as np

SLOTS = 8192  # numbers of a ciphertext


@dataclasses.dataclass(frozen=True)
class Ciphertexts:
  """What one direction of a matrix product takes.

  Attributes:
    queries, answers: ciphertexts each way.
    pieces: plaintexts multiplied.
    rotations: those that pack answers.
    client_encrypts: whether the client's matrix is the one that is encrypted.
  """

  queries: int
  answers: int
  pieces: int
  rotations: int
  client_encrypts: bool


@functools.cache
def ciphertexts(M: int, K: int, L: int) -> Ciphertexts:
  """How the engine cuts a matrix product.

  A ciphertext holds a block of d0 × d1 × d2; the engine takes the block with the fewest ciphertexts, at 1000 a
  ciphertext, 1 a rotation, 0.1 a product. One answer packs d1 results, unless there is but one.
  """
  for packed in (True, False):
    d0, d1, d2 = _block(M, K, L, packed=packed)
    b0, b1, b2 = -(-M // d0), -(-K // d1), -(-L // d2)
    if b0 * b2 > 1:
      break
  answers = math.ceil(b0 * b2 / d1) if packed else b0 * b2
  return Ciphertexts(min(b0, b2) * b1, answers, b0 * b1 * b2, answers * d1 * packed, b0 <= b2)


def _block(M: int, K: int, L: int, *, packed: bool) -> tuple[int, int, int]:
  d0 = np.arange(1, min(SLOTS, M) + 1)[:, None]
  d1 = 2 ** np.arange(int(np.log2(K)) + 1) if packed else np.arange(1, K + 1)
  d1 = d1[None, :]
  fits = d0 * d1 <= SLOTS
  d2 = np.minimum(L, np.maximum(SLOTS // (d0 * d1), 1))
  b0, b1, b2 = -(-M // d0), -(-K // d1), -(-L // d2)
  rotations = -(-M * L // SLOTS) * d1 if packed else 0
  price = (np.minimum(b0, b2) * b1 + -(-b0 * b2 // d1)) * 1000.0 + rotations + b0 * b1 * b2 / 10.0
  price = np.where(fits, price, np.inf)
  # Of equal prices the last in the engine's order of search.
  i, j = divmod(price.size - 1 - int(np.argmin(price[::-1, ::-1])), price.shape[1])
  return int(d0[i, 0]), int(d1[0, j]), int(d2[i, j])
