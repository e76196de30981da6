"""The steps of a private causal softmax, from queries and keys to weighted sums of values.

Letters in array names: N queries, M keys (past and new), H heads, K head width, E entries of the causal part of N × M.
Where a step says `length` and `keys`, they are N and M.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program import causal
from entropy_attn.private.program.maximum import segment_max
from entropy_attn.private.program.squares import Squares
from entropy_attn.private.program.types import Operation

_MASKED = -30.0  # added to what a stock softmax may not see: exp of it is nothing, and fixed point holds it


@dataclasses.dataclass(frozen=True)
class CutScores(Operation):
  """Scores of an uncut q kᵀ of any shape, times scale and 2^−halvings.

  Attributes:
    narrow: whether a narrow ring reads the result.
  """

  scale: float
  halvings: int
  narrow: bool

  def __call__(self, ops, s):
    s = ops.cut(s)
    s = s if self.scale == 1.0 else s * self.scale
    return ops.halve(s, self.halvings, self.narrow)


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
    lengths_N = causal.row_lengths(self.length, self.keys)
    y_HxE = s_HxE - segment_max(s_HxE, lengths_N, self.fours)[:, np.repeat(np.arange(self.length), lengths_N)]
    return y_HxE if self.low is None else jnp.maximum(y_HxE, self.low)

  def cost_key(self):
    return dataclasses.replace(self, low=None)  # it costs the same wherever it lies


@dataclasses.dataclass(frozen=True)
class MaskedBelowMaximum(Operation):
  """All entries [H, N, M] less the maximum of their row, those that causality forbids far below."""

  def __call__(self, ops, s_HxNxM):
    allowed_NxM = causal.allowed(*s_HxNxM.shape[1:])
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
class Shift(Operation):
  """y plus a constant."""

  by: float

  def __call__(self, ops, y):
    return y + self.by

  def cost_key(self):
    return type(self)


@dataclasses.dataclass(frozen=True)
class CutSquare(Operation):
  """One link of a chain of squares, z² + offset, of an uncut z² below 1.5."""

  offset: float

  def __call__(self, ops, zz):
    # A cut takes what is between −1 and 1 alone in the narrow ring (types.BELOW_ONE).
    return ops.cut_square(zz) + self.offset

  def cost_key(self):
    return type(self)


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

  keys: int

  def __call__(self, ops, e_HxE):
    return causal.filled(e_HxE, self.keys, jnp)


@dataclasses.dataclass(frozen=True)
class Forbid(Operation):
  """[H, N, M] with 0 where causality forbids."""

  def __call__(self, ops, e_HxNxM):
    allowed_NxM = causal.allowed(*e_HxNxM.shape[1:]).astype(np.int32)  # as booleans the engine refuses large constants
    return e_HxNxM * allowed_NxM


@dataclasses.dataclass(frozen=True)
class RowSums(Operation):
  """The sums [H, N] of rows of causal entries [H, E]."""

  keys: int

  def __call__(self, ops, e_HxE):
    return jnp.sum(causal.filled(e_HxE, self.keys, jnp), axis=-1)


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

  def __call__(self, ops, e_HxE, inverse_HxN):
    return e_HxE * causal.spread(inverse_HxN, e_HxE.shape[1])


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
class DivideRows(Operation):
  """Each row of [H, N, K] times its factor [H, N]."""

  def __call__(self, ops, u_HxNxK, inverse_HxN):
    return ops.scale_rows(u_HxNxK, inverse_HxN)


def sum_bounds(length: int, keys: int, top: float) -> tuple[float, np.ndarray]:
  """Between what a row's sum of exponentials lies: the lower bound, and the upper one of each row, [length].

  Args:
    top: the largest exponential, that of 0.
  """
  return 0.9 * top, (1.1 * top * causal.row_lengths(length, keys)).astype(np.float32)
