"""The one check of a whole inference: what no softmax and no LayerNorm gives is counted in secret."""

import dataclasses

import jax.numpy as jnp

from entropy_attn.private.program import operations, softmax
from entropy_attn.private.program.types import Operation


@dataclasses.dataclass(frozen=True)
class CountAtOnce(Operation):
  """Rows of every layer's softmax that `softmax.CountImpossible` counts, and of the final LayerNorm, by one comparison.

  Attributes:
    keys: of each layer.
    tops: the largest exponential of each layer.
  """

  keys: tuple[int, ...]
  tops: tuple[float, ...]

  def __call__(self, ops, y_NxD, *sums):
    mean_N = jnp.mean(ops.square(y_NxD), axis=-1)
    least, most = operations.MEAN_SQUARE
    room = [mean_N - least, most - mean_N]  # a row fails where one of its two is negative; both cannot be
    for sums_HxN, keys, top in zip(sums, self.keys, self.tops, strict=True):
      least, most_N = softmax.sum_bounds(sums_HxN.shape[1], keys, top)
      room += [(sums_HxN - least).reshape(-1), (most_N - sums_HxN).reshape(-1)]
    return jnp.sum((jnp.concatenate(room) < 0.0).astype(jnp.int32))
