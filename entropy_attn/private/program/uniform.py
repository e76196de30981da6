"""Heads that attend to all earlier positions alike: the means of values, with weights that are public.

Letters in array names: H heads, U uniform ones, R the rest, N queries, M keys, K head width.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program.types import Operation


@dataclasses.dataclass(frozen=True)
class CausalMeans(Operation):
  """The means [U, N, K] of the values [H, M, K] that each of the last N positions may see.

  Attributes:
    heads: the uniform ones.
    length: N.
  """

  heads: tuple[int, ...]
  length: int

  def __call__(self, ops, v_HxMxK):
    M = v_HxMxK.shape[1]
    sums_UxNxK = jnp.cumsum(v_HxMxK[np.array(self.heads)], axis=1)[:, M - self.length :]
    return sums_UxNxK * (1 / np.arange(M - self.length + 1, M + 1, dtype=np.float32))[:, None]


@dataclasses.dataclass(frozen=True)
class Rest(Operation):
  """Queries, keys and values of the other heads.

  Attributes:
    heads: those.
  """

  heads: tuple[int, ...]

  def __call__(self, ops, *arrays):
    return tuple(array[np.array(self.heads)] for array in arrays)


@dataclasses.dataclass(frozen=True)
class Together(Operation):
  """Mixed values [H, N, K] of all heads.

  Attributes:
    heads: in the order in which they are read: uniform ones, then the rest.
  """

  heads: tuple[int, ...]

  def __call__(self, ops, means_UxNxK, mixed_RxNxK):
    return jnp.concatenate([means_UxNxK, mixed_RxNxK])[np.argsort(self.heads)]
