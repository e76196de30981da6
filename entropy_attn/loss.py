"""Cross-entropy of a large vocabulary, in chunks of tokens: the logits of the whole batch never exist at once.

Letters in array names: C chunks, M shards of the batch, B sequences of a shard, T tokens, D model width, V vocabulary.
"""

import functools
import math

import jax
import jax.numpy as jnp

from entropy_attn import sharding

CHUNKS = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy_sum(
  x_BxTxD: jax.Array, head_DxV: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array, dtype: str = "float32"
) -> jax.Array:
  """Weighted sum of −log softmax(x head)[target] over the tokens, in nats.

  Differentiable in x and head. The gradients are made together with the loss, chunk by chunk: the logits are computed
  once, and at most 1/8 of them (float32) is ever held. Chunks are cut along T, so that no token leaves its device, and
  each device adds up its own part of the head's gradient: one reduction at the end, whatever the number of chunks.

  Args:
    x_BxTxD: final hidden states.
    head_DxV: the vocabulary projection.
    targets_BxT: integers.
    weights_BxT: of each token's loss; where 0, nothing the token holds matters.
    dtype: of the operands of the products; they are accumulated in float32.

  Returns:
    A float32 scalar.
  """
  head_DxV = sharding.constrain(head_DxV.astype(dtype), (None, "vocab"))

  operands = _chunks(x_BxTxD, targets_BxT, weights_BxT)

  def chunk(total_M, operands):
    return total_M + _weighted_loss(*_logits(operands, head_DxV), *operands[1:]), None

  return jnp.sum(jax.lax.scan(chunk, _zeros(operands), operands)[0])


def _forward(x_BxTxD, head_DxV, targets_BxT, weights_BxT, dtype):
  head = sharding.constrain(head_DxV.astype(dtype), (None, "vocab"))

  def chunk(carry, operands):
    total_M, dhead_MxDxV = carry
    x_MxBxTxD, targets, weights = operands
    logits, lse = _logits(operands, head)
    total_M = total_M + _weighted_loss(logits, lse, targets, weights)
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    dlogits = jnp.where(weights[..., None] > 0, (jnp.exp(logits - lse[..., None]) - hit) * weights[..., None], 0)
    dlogits = dlogits.astype(dtype)
    dx = jnp.einsum("MBTV,DV->MBTD", dlogits, head, preferred_element_type=jnp.float32)
    dhead = jnp.einsum("MBTD,MBTV->MDV", x_MxBxTxD.astype(dtype), dlogits, preferred_element_type=jnp.float32)
    return (total_M, sharding.constrain(dhead_MxDxV + dhead, ("batch", None, "vocab"))), dx

  operands = _chunks(x_BxTxD, targets_BxT, weights_BxT)
  zeros = _zeros(operands), _zeros(operands, head_DxV.shape, (None, "vocab"))
  (total_M, dhead_MxDxV), dx_CxMxBxTxD = jax.lax.scan(chunk, zeros, operands)
  dx = jnp.moveaxis(dx_CxMxBxTxD, 0, 2)  # M, B, C, T, D
  dx_BxTxD = dx.reshape(len(x_BxTxD), -1, dx.shape[-1])[:, : x_BxTxD.shape[1]]
  return jnp.sum(total_M), (dx_BxTxD.astype(x_BxTxD.dtype), jnp.sum(dhead_MxDxV, axis=0).astype(head_DxV.dtype))


def _backward(dtype, saved, dtotal):
  dx_BxTxD, dhead_DxV = saved
  return dx_BxTxD * dtotal, dhead_DxV * dtotal, None, None


cross_entropy_sum.defvjp(_forward, _backward)


def _logits(operands, head_DxV):
  """float32 logits [M, B, T, V] of a chunk, and their log-sum-exp [M, B, T]."""
  x_MxBxTxD = operands[0].astype(head_DxV.dtype)
  logits = jnp.einsum("MBTD,DV->MBTV", x_MxBxTxD, head_DxV, preferred_element_type=jnp.float32)
  return logits, jax.nn.logsumexp(logits, axis=-1)


def _weighted_loss(logits_MxBxTxV, lse_MxBxT, targets_MxBxT, weights_MxBxT):
  """The weighted sum of the losses of each shard, [M]."""
  hit_MxBxT = jnp.take_along_axis(logits_MxBxTxV, targets_MxBxT[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(weights_MxBxT > 0, (lse_MxBxT - hit_MxBxT) * weights_MxBxT, 0), axis=(1, 2))


def _zeros(operands, shape=(), axes=()):
  """float32 [M, *shape], a part on each shard."""
  return sharding.constrain(jnp.zeros((operands[0].shape[1], *shape)), ("batch", *axes))


def _chunks(*arrays_BxT):
  """Each [B, T, …] as [C, M, B/M, T/C, …], T padded with zeros to whole chunks."""
  B, T = arrays_BxT[0].shape[:2]
  M = sharding.batch_shards(B)
  width = math.ceil(T / CHUNKS)
  chunks = math.ceil(T / width)

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, chunks * width - T)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.moveaxis(x.reshape(M, B // M, chunks, width, *x.shape[2:]), 2, 0)
    return sharding.constrain(x, (None, "batch"))

  return tuple(map(cut, arrays_BxT))
