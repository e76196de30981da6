"""Keys and values of the tokens before, so that the next one needs no second look at them.

Letters in array names: L layers, B batch, T new tokens, S tokens that there is room for, H heads, K head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
  """What `model.GPT` needs of earlier tokens; in a block, without the axis of layers.

  Attributes:
    keys: [L, B, S, H, K] in config.dtype.
    values: the same; with value residuals, those that were attended to.
    length: int32 [L], how many of the S are filled, the same in all layers: the position of the next token.
  """

  keys: jax.Array
  values: jax.Array
  length: jax.Array

  def extended(self, out: dict[str, jax.Array], count: jax.Array | int = 1) -> "Cache":
    """With the keys and values of the first `count` of T tokens, as GPT's `out` has them; T must fit what is left.

    What comes after these `count`, of padding, is attended to by nobody and overwritten by the next ones.
    """
    write = lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new, self.length[0], axis=2)
    return Cache(write(self.keys, out["keys"]), write(self.values, out["values"]), self.length + count)

  def joined(self, k_BxTxHxK: jax.Array, v_BxTxHxK: jax.Array):
    """In a block: the keys and values that new tokens attend to, [B, S+T, H, K], and the mask, [1, 1, T, S+T]."""
    T, S = k_BxTxHxK.shape[1], self.keys.shape[1]
    filled_TxS = jnp.broadcast_to(jnp.arange(S) < self.length, (T, S))
    mask = jnp.concatenate([filled_TxS, jnp.tril(jnp.ones((T, T), bool))], axis=1)
    join = lambda kept, new: jnp.concatenate([kept, new], axis=1)
    return join(self.keys, k_BxTxHxK), join(self.values, v_BxTxHxK), mask[None, None]


def empty(config, batch: int = 1, size: int | None = None) -> Cache:
  """Of no tokens yet.

  Args:
    config: the model group of a config.
    batch: B.
    size: S; None: config.context_length.
  """
  L, H = config.num_layers, config.num_heads
  size = config.context_length if size is None else size
  nothing = jnp.zeros((L, batch, size, H, config.d_model // H), jnp.dtype(config.dtype))
  return Cache(nothing, nothing, jnp.zeros(L, jnp.int32))
