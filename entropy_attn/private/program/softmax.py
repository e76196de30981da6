"""The steps of a private causal softmax, from queries and keys to weighted sums of values.

Letters in array names: N queries, M keys (past and new), H heads, K head width, E entries of the causal part of N × M.
Where a step says `length` and `keys`, they are N and M, of which E alone does not tell.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program.squares import Squares
from entropy_attn.private.program.types import Operation

_MASKED = -30.0  # added to what a stock softmax may not see: exp of it is nothing, and fixed point holds it


@dataclasses.dataclass(frozen=True)
class Scores(Operation):
  """q kᵀ times scale and 2^−halvings: [H, N, M], or its causal part [H, E] alone.

  Attributes:
    triangle: whether the causal part alone is returned; else nothing is halved.
    join: all heads of one query by one product, of a block-diagonal matrix with all keys.
    narrow: whether a narrow ring reads the result.
  """

  triangle: bool
  join: bool
  scale: float
  halvings: int
  narrow: bool

  def __call__(self, ops, q_HxNxK, k_HxMxK):
    H, N, K = q_HxNxK.shape
    M = k_HxMxK.shape[1]
    if self.join and N == 1:
      blocks_HxHxK = q_HxNxK * np.eye(H, dtype=np.int32)[:, :, None]
      keys_HKxM = jnp.swapaxes(k_HxMxK, 1, 2).reshape(H * K, M)
      s_HxNxM = (blocks_HxHxK.reshape(H, H * K) @ keys_HKxM)[:, None]
    else:
      s_HxNxM = jnp.einsum("HNK,HMK->HNM", q_HxNxK, k_HxMxK)
    if self.scale != 1.0:
      s_HxNxM = s_HxNxM * self.scale
    if not self.triangle:
      return s_HxNxM
    return ops.halve(s_HxNxM.reshape(H, N * M)[:, _causal_entries(N, M)], self.halvings, self.narrow)


@dataclasses.dataclass(frozen=True)
class BelowMaximum(Operation):
  """Causal entries [H, E] less the maximum of their row.

  Attributes:
    low: what no entry goes below; None: no such end.
  """

  length: int
  keys: int
  low: float | None

  def __call__(self, ops, s_HxE):
    lengths_N = _row_lengths(self.length, self.keys)
    y_HxE = s_HxE - _segment_max(s_HxE, lengths_N)[:, np.repeat(np.arange(self.length), lengths_N)]
    return y_HxE if self.low is None else jnp.maximum(y_HxE, self.low)

  def cost_key(self):
    return dataclasses.replace(self, low=None)  # it costs the same wherever it lies


@dataclasses.dataclass(frozen=True)
class MaskedBelowMaximum(Operation):
  """All entries [H, N, M] less the maximum of their row, those that causality forbids far below."""

  def __call__(self, ops, s_HxNxM):
    allowed_NxM = _allowed(*s_HxNxM.shape[1:])
    s_HxNxM = s_HxNxM + np.where(allowed_NxM, 0.0, _MASKED).astype(np.float32)
    return s_HxNxM - jnp.max(s_HxNxM, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class ExpBySquares(Operation):
  """exp of y that was scaled already, by a fitted chain of squares."""

  exponential: Squares

  def __call__(self, ops, y):
    return self.exponential.chain(ops.square, y + self.exponential.start)

  def cost_key(self):
    return type(self), len(self.exponential.offsets)  # additions of constants are free


@dataclasses.dataclass(frozen=True)
class ExpByEngine(Operation):
  """exp y, as the engine has it."""

  def __call__(self, ops, y):
    return ops.exp(y)


@dataclasses.dataclass(frozen=True)
class Lower(Operation):
  """2^−bits x, where x came from a narrow ring into the upper half of a wide one."""

  bits: int

  def __call__(self, ops, x):
    return ops.lower(x, self.bits)


@dataclasses.dataclass(frozen=True)
class Fill(Operation):
  """[H, N, M] of the causal entries [H, E], and 0 elsewhere."""

  length: int
  keys: int

  def __call__(self, ops, e_HxE):
    entries_E = _causal_entries(self.length, self.keys)
    back = np.full(self.length * self.keys, len(entries_E))  # where nothing is allowed: a zero put behind the entries
    back[entries_E] = np.arange(len(entries_E))
    e_HxE = jnp.concatenate([e_HxE, jnp.zeros((len(e_HxE), 1), e_HxE.dtype)], axis=1)
    return e_HxE[:, back].reshape(len(e_HxE), self.length, self.keys)


@dataclasses.dataclass(frozen=True)
class Forbid(Operation):
  """[H, N, M] with 0 where causality forbids."""

  def __call__(self, ops, e_HxNxM):
    return e_HxNxM * _allowed(*e_HxNxM.shape[1:]).astype(np.int32)  # as booleans the engine refuses large constants


@dataclasses.dataclass(frozen=True)
class RowSums(Operation):
  """The sums [H, N] of rows of causal entries [H, E]."""

  length: int
  keys: int

  def __call__(self, ops, e_HxE):
    return jnp.sum(Fill(self.length, self.keys)(ops, e_HxE), axis=-1)


@dataclasses.dataclass(frozen=True)
class Sums(Operation):
  """The sums [H, N] of the rows of [H, N, M]."""

  def __call__(self, ops, e_HxNxM):
    return jnp.sum(e_HxNxM, axis=-1)


@dataclasses.dataclass(frozen=True)
class Inverse(Operation):
  """1 / row sums [H, N].

  Attributes:
    narrow: whether a narrow ring reads the result.
  """

  narrow: bool

  def __call__(self, ops, sums_HxN):
    return ops.inverse(sums_HxN, self.narrow)


@dataclasses.dataclass(frozen=True)
class Probabilities(Operation):
  """Causal entries [H, E] times the inverse sum of their row."""

  length: int
  keys: int

  def __call__(self, ops, e_HxE, inverse_HxN):
    return e_HxE * inverse_HxN[:, np.repeat(np.arange(self.length), _row_lengths(self.length, self.keys))]


@dataclasses.dataclass(frozen=True)
class CountImpossible(Operation):
  """Rows, and those of earlier layers, whose sum cannot be that of exponentials.

  Attributes:
    top: the largest exponential, that of 0.
  """

  keys: int
  top: float

  def __call__(self, ops, sums_HxN, *earlier):
    least, most_N = sum_bounds(sums_HxN.shape[1], self.keys, self.top)
    bad = jnp.sum((sums_HxN < least).astype(jnp.int32)) + jnp.sum((sums_HxN > most_N).astype(jnp.int32))
    return bad + earlier[0] if earlier else bad


@dataclasses.dataclass(frozen=True)
class Divided(Operation):
  """Probabilities [H, N, M]: each row divided by its sum."""

  def __call__(self, ops, e_HxNxM):
    return e_HxNxM / jnp.sum(e_HxNxM, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Mix(Operation):
  """Sums of values, weighted, [H, N, K].

  Attributes:
    join: all heads of one query by one product, of which each keeps its own values.
  """

  join: bool

  def __call__(self, ops, e_HxNxM, v_HxMxK):
    H, N, M = e_HxNxM.shape
    if not self.join or N > 1:
      return e_HxNxM @ v_HxMxK
    values_MxHK = jnp.swapaxes(v_HxMxK, 0, 1).reshape(M, -1)
    mixed_HxHxK = (e_HxNxM[:, 0] @ values_MxHK).reshape(H, H, -1)
    return jnp.stack([mixed_HxHxK[h, h] for h in range(H)])[:, None]


@dataclasses.dataclass(frozen=True)
class DivideRows(Operation):
  """Each row of [H, N, K] times its factor [H, N]."""

  def __call__(self, ops, u_HxNxK, inverse_HxN):
    return ops.scale_rows(u_HxNxK, inverse_HxN)


def sum_bounds(length: int, keys: int, top: float) -> tuple[float, np.ndarray]:
  """Between what a row's sum of exponentials lies: the lower bound, and the upper one of each row, [length].

  Args:
    top: the largest exponential, that of 0.
  """
  return 0.9 * top, (1.1 * top * _row_lengths(length, keys)).astype(np.float32)


def _row_lengths(length: int, keys: int) -> np.ndarray:
  """How many keys each of the last `length` of `keys` positions may attend to, [length]."""
  return np.arange(keys - length + 1, keys + 1)


def _allowed(length: int, keys: int) -> np.ndarray:
  """Where each of the last `length` of `keys` positions may look: booleans [length, keys]."""
  return _row_lengths(length, keys)[:, None] > np.arange(keys)


def _causal_entries(length: int, keys: int) -> np.ndarray:
  """Where the causal entries lie in a flattened [length, keys]: indices [E]."""
  return np.flatnonzero(_allowed(length, keys))


def _segment_max(s_HxE, lengths_N):
  """The maximum [H, N] of each of N neighbouring segments, by a tournament: E − N comparisons a head."""
  lengths = np.array(lengths_N)
  while lengths.max() > 1:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pairs = lengths // 2
    first = np.concatenate([start + 2 * np.arange(n) for start, n in zip(starts, pairs, strict=True)])
    winners = jnp.maximum(s_HxE[:, first], s_HxE[:, first + 1])
    odd = np.flatnonzero(lengths % 2)
    pool = jnp.concatenate([winners, s_HxE[:, starts[odd] + lengths[odd] - 1]], axis=1) if len(odd) else winners
    # Back to the order of the segments: the winners of each, then its odd one out.
    segment = np.concatenate([np.repeat(np.arange(len(lengths)), pairs), odd])
    s_HxE = pool[:, np.argsort(segment, kind="stable")]
    lengths = pairs + lengths % 2
  return s_HxE
