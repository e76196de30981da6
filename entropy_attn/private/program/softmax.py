"""The steps of a private causal softmax, from queries and keys to weighted sums of values.

Letters in array names: N queries, M keys (past and new), H heads, K head width, E entries of the causal part of N × M.
Where a step says `length` and `keys`, they are N and M, of which E alone does not tell.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program import joined
from entropy_attn.private.program.maximum import segment_max
from entropy_attn.private.program.squares import Squares
from entropy_attn.private.program.types import Operation

_BLOCKS = (1, 2, 4, 8, 16)  # of queries, that are tried
_MASKED = -30.0  # added to what a stock softmax may not see: exp of it is nothing, and fixed point holds it


@dataclasses.dataclass(frozen=True)
class Scores(Operation):
  """q kᵀ times scale and 2^−halvings: [H, N, M], or its causal part [H, E] alone.

  Attributes:
    triangle: whether the causal part alone is returned; else nothing is halved.
    join: which heads are multiplied by one product; see `joined.choose`.
    blocks: whether blocks of queries are multiplied with the keys that they may see alone, where that costs less.
    narrow: whether a narrow ring reads the result.
  """

  triangle: bool
  join: str
  blocks: bool
  scale: float
  halvings: int
  narrow: bool

  def __call__(self, ops, q_HxNxK, k_HxMxK):
    N, M = q_HxNxK.shape[1], k_HxMxK.shape[1]
    if not self.triangle:
      return self._scores(q_HxNxK, k_HxMxK)
    ends = self._ends(*q_HxNxK.shape, M)
    parts = []
    for start, end in itertools.pairwise((0, *ends)):
      seen = M - N + end
      s_HxBxM = self._scores(q_HxNxK[:, start:end], k_HxMxK[:, :seen])
      parts.append(s_HxBxM.reshape(len(s_HxBxM), -1)[:, _causal_entries(end - start, seen)])
    return ops.halve(jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0], self.halvings, self.narrow)

  def _scores(self, q_HxBxK, k_HxMxK):
    joining = self._joining(*q_HxBxK.shape, k_HxMxK.shape[1])
    s_HxBxM = joined.product(q_HxBxK, jnp.swapaxes(k_HxMxK, 1, 2), joining)
    return s_HxBxM if self.scale == 1.0 else s_HxBxM * self.scale

  def _joining(self, H: int, B: int, K: int, M: int) -> joined.Joining:
    return joined.choose(self.join, H, B, K, M, one=True)

  def _ends(self, H: int, N: int, K: int, M: int) -> tuple[int, ...]:
    """Where each block of queries ends: of 1, 2, 4, … blocks those that cost least."""
    if not self.blocks:
      return (N,)

    def price(ends: tuple[int, ...]) -> float:
      blocks = [(H, end - start, K, M - N + end) for start, end in itertools.pairwise((0, *ends))]
      return sum(joined.price(self._joining(*block), *block) for block in blocks)

    return min((tuple(N * (i + 1) // B for i in range(B)) for B in _BLOCKS if B <= N), key=price)


@dataclasses.dataclass(frozen=True)
class BelowMaximum(Operation):
  """Causal entries [H, E] less the maximum of their row.

  Attributes:
    low: what no entry goes below; None: no such end.
    fours: see `maximum.segment_max`.
  """

  length: int
  keys: int
  low: float | None
  fours: bool = False

  def __call__(self, ops, s_HxE):
    lengths_N = _row_lengths(self.length, self.keys)
    y_HxE = s_HxE - segment_max(s_HxE, lengths_N, self.fours)[:, np.repeat(np.arange(self.length), lengths_N)]
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
class Narrowed(Operation):
  """x, of any shape, for a narrow ring to read."""

  def __call__(self, ops, x):
    return ops.halve(x, 0, True)


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
    join: which heads are multiplied by one product; see `joined.choose`.
  """

  join: str

  def __call__(self, ops, e_HxNxM, v_HxMxK):
    joining = joined.choose(self.join, *e_HxNxM.shape, v_HxMxK.shape[2], one=False)
    return joined.product(e_HxNxM, v_HxMxK, joining)


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
