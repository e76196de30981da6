"""Products on the integers of a ring, of which nearly all work can be done before their numbers are known.

Letters in array names: N queries or rows, M keys, D and L widths, H heads, K head width or rows of a matrix, E causal
entries.
"""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program import causal, joined
from entropy_attn.private.program.packing import SLOTS
from entropy_attn.private.program.types import ElementwiseProduct, Product, SecretProduct

_BLOCKS = (1, 2, 4, 8, 16)  # of queries, that are tried


@dataclasses.dataclass(frozen=True)
class Weigh(Product):
  """x W of x [N, K] and a matrix that the server alone knows, or of some of its columns.

  Attributes:
    first, end: of the columns.
    row_block: rows of x at a time; None: all. The server's memory grows with them, the bytes do not.
    column_block: columns at a time, likewise.
  """

  first: int
  end: int
  row_block: int | None = None
  column_block: int | None = None

  def __call__(self, ops, x_NxK, kernel_KxL):
    N, width = len(x_NxK), self.end - self.first
    rows, columns = self.row_block or N, self.column_block or width
    starts = range(self.first, self.end, columns)
    parts = [
      jnp.concatenate([x_NxK[i : i + rows] @ kernel_KxL[:, j : min(j + columns, self.end)] for j in starts], axis=1)
      for i in range(0, N, rows)
    ]
    return jnp.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Scores(SecretProduct):
  """q kᵀ: [H, N, M], or its causal part [H, E] alone.

  Attributes:
    triangle: whether the causal part alone is returned.
    join: which heads are multiplied by one product; see `joined.choose`.
    blocks: whether blocks of queries are multiplied with the keys that they may see alone, where that costs less.
  """

  triangle: bool
  join: str
  blocks: bool

  def __call__(self, ops, q_HxNxK, k_HxMxK):
    N, M = q_HxNxK.shape[1], k_HxMxK.shape[1]
    if not self.triangle:
      return self._scores(q_HxNxK, k_HxMxK)
    ends = self._ends(*q_HxNxK.shape, M)
    parts = []
    for start, end in itertools.pairwise((0, *ends)):
      seen = M - N + end
      s_HxBxM = self._scores(q_HxNxK[:, start:end], k_HxMxK[:, :seen])
      parts.append(s_HxBxM.reshape(len(s_HxBxM), -1)[:, causal.entries(end - start, seen)])
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

  def multiply(self, x, y):
    s_HxNxM = x @ np.swapaxes(y, 1, 2)
    H, N, M = s_HxNxM.shape
    return s_HxNxM.reshape(H, N * M)[:, causal.entries(N, M)] if self.triangle else s_HxNxM

  def _scores(self, q_HxBxK, k_HxMxK):
    joining = self._joining(*q_HxBxK.shape, k_HxMxK.shape[1])
    return joined.product(q_HxBxK, jnp.swapaxes(k_HxMxK, 1, 2), joining)

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
class Mix(SecretProduct):
  """Sums of values, weighted, [H, N, K]: of weights [H, N, M], or of their causal part [H, E].

  Attributes:
    join: which heads are multiplied by one product; see `joined.choose`.
  """

  join: str

  def __call__(self, ops, e, v_HxMxK):
    e_HxNxM = e if e.ndim == 3 else causal.filled(e, v_HxMxK.shape[1], jnp)
    joining = joined.choose(self.join, *e_HxNxM.shape, v_HxMxK.shape[2], one=False)
    return joined.product(e_HxNxM, v_HxMxK, joining)

  def multiply(self, x, y):
    return (x if x.ndim == 3 else causal.filled(x, y.shape[1], np)) @ y

  def unpadded(self, x, y):
    H, M, K = y
    return H, x[1] if len(x) == 3 else causal.queries(x[1], M), K


@dataclasses.dataclass(frozen=True)
class Divide(ElementwiseProduct):
  """Causal entries [H, E] times the inverse sum [H, N] of their row."""

  def multiply(self, x, y):
    return x * causal.spread(y, x.shape[1])


@dataclasses.dataclass(frozen=True)
class ScaleRows(ElementwiseProduct):
  """Each row of [H, N, K] times its factor [H, N]."""

  def multiply(self, x, y):
    return x * y[..., None]


@dataclasses.dataclass(frozen=True)
class Square(ElementwiseProduct):
  """z², of any shape."""

  def multiply(self, x, y):
    return x * y


@dataclasses.dataclass(frozen=True)
class CrossTerms(Product):
  """r s [n] of numbers r of the server and s of the client: of a product of masks, what neither party has alone.

  With x and y in shares, x y is x₀y₀ + x₁y₁, which each party has, and x₀y₁ + x₁y₀. In every SLOTS-th place is a number
  of no use but to be opened, before the rest is trusted: where a ciphertext failed, all its numbers are wrong.

  Attributes:
    operation: the product.
    shapes: of its arrays.
  """

  operation: ElementwiseProduct
  shapes: tuple[tuple[int, ...], ...]

  def __call__(self, ops, r, s):
    return r * s

  @property
  def length(self) -> int:
    """n."""
    useful = len(self.shapes) * math.prod(self.shapes[0])
    return useful + math.ceil(useful / (SLOTS - 1))

  def witnesses(self) -> np.ndarray:
    """Where the numbers lie that are opened: booleans [n]."""
    return np.arange(self.length) % SLOTS == 0

  def cost_key(self):
    return type(self), self.length
