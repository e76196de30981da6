"""Cross-entropy of a large vocabulary, in chunks of tokens: the logits of the whole batch never exist at once.

Letters in array names: C chunks, M shards of the batch, B sequences of a shard, T tokens, D model width (E: of a
teacher), V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from entropy_attn import parts, sharding

CHUNKS = 8


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
  fn = lambda *operands: (_cross_entropy(*parts.alike(*operands), dtype),)
  return parts.on_each(fn, ("BTD", "DV", "BT", "BT"), ("",), "B", x_BxTxD, head_DxV, targets_BxT, weights_BxT)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(x_BxTxD, head_DxV, targets_BxT, weights_BxT, dtype):
  head_DxV = sharding.constrain(head_DxV.astype(dtype), (None, "vocab"))
  operands = _chunks(x_BxTxD, targets_BxT, weights_BxT)

  def chunk(total_M, operands):
    return total_M + _weighted_loss(*_logits(operands, head_DxV), *operands[1:]), None

  return jnp.sum(jax.lax.scan(chunk, _zeros(operands), operands)[0])


def _forward(x_BxTxD, head_DxV, targets_BxT, weights_BxT, dtype):
  def loss_of(logits, lse, targets, weights):
    return (_weighted_loss(logits, lse, targets, weights),), _slope(logits, lse, targets, weights)

  (total,), gradients = _with_gradients(loss_of, x_BxTxD, head_DxV, (targets_BxT, weights_BxT), dtype, sums=1)
  return total, gradients


def _backward(dtype, saved, dtotal):
  dx_BxTxD, dhead_DxV = saved
  return dx_BxTxD * dtotal, dhead_DxV * dtotal, None, None


_cross_entropy.defvjp(_forward, _backward)


def distilled_sum(
  x_BxTxD: jax.Array,
  head_DxV: jax.Array,
  teacher: tuple[jax.Array, jax.Array],
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  *,
  weight: float,
  temperature: float,
  dtypes: tuple[str, str] = ("float32", "float32"),
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Weighted sums over the tokens of (1 − weight) CE + weight t² KL, of CE, and of KL, in nats.

  CE is that of `cross_entropy_sum`, KL = KL(softmax(teacher's logits / t) ‖ softmax(logits / t)). t² gives the KL the
  gradients of t = 1 (Hinton, Vinyals & Dean 2015, arXiv:1503.02531). The first sum alone is differentiable, in x and
  head; its gradients are made as those of `cross_entropy_sum`: of either model 1/8 of the logits is ever held.

  Args:
    x_BxTxD, head_DxV: final hidden states of the student, and its vocabulary projection.
    teacher: the same two of the teacher, whose width may be another.
    targets_BxT, weights_BxT: as for `cross_entropy_sum`; the weights are those of the KL, too.
    weight: in 0 … 1.
    temperature: t > 0.
    dtypes: of the operands of the student's products, and of the teacher's.

  Returns:
    Three float32 scalars.
  """
  operands = (x_BxTxD, head_DxV, *jax.lax.stop_gradient(teacher), targets_BxT, weights_BxT)
  fn = lambda *operands: _distilled(*parts.alike(*operands), weight, temperature, dtypes)
  axes = ("BTD", "DV", "BTE", "EV", "BT", "BT")
  total, cross_entropy, kl = parts.on_each(fn, axes, ("", "", ""), "B", *operands)
  return total, jax.lax.stop_gradient(cross_entropy), jax.lax.stop_gradient(kl)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _distilled(*operands):
  return _distilled_forward(*operands)[0]


def _distilled_forward(x, head, teacher_x, teacher_head, targets_BxT, weights_BxT, weight, temperature, dtypes):
  dtype, teacher_dtype = dtypes
  teacher_head = sharding.constrain(teacher_head.astype(teacher_dtype), (None, "vocab"))

  def loss_of(logits, lse, teacher_x, targets, weights):
    taught = jax.nn.log_softmax(_logits((teacher_x,), teacher_head)[0] / temperature)
    learned = jax.nn.log_softmax(logits / temperature)
    kl_MxBxT = jnp.sum(jnp.exp(taught) * (taught - learned), axis=-1)
    cross_entropy = _weighted_loss(logits, lse, targets, weights)
    kl = jnp.sum(jnp.where(weights > 0, kl_MxBxT * weights, 0), axis=(1, 2))
    slope = (jnp.exp(learned) - jnp.exp(taught)) * weights[..., None]  # of KL in logits / t
    dlogits = (1 - weight) * _slope(logits, lse, targets, weights)
    dlogits = dlogits + weight * temperature * jnp.where(weights[..., None] > 0, slope, 0)
    return ((1 - weight) * cross_entropy + weight * temperature**2 * kl, cross_entropy, kl), dlogits

  return _with_gradients(loss_of, x, head, (teacher_x, targets_BxT, weights_BxT), dtype, sums=3)


def _distilled_backward(weight, temperature, dtypes, saved, dsums):
  dx_BxTxD, dhead_DxV = saved
  return dx_BxTxD * dsums[0], dhead_DxV * dsums[0], None, None, None, None


_distilled.defvjp(_distilled_forward, _distilled_backward)


def _with_gradients(loss_of, x_BxTxD, head_DxV, others, dtype: str, sums: int):
  """Sums over the tokens, and the gradients of the first of them, chunk by chunk.

  Args:
    loss_of: (logits [M, B, T, V], their log-sum-exp, *others) of a chunk → a tuple of sums [M], and the slope of the
      first in the logits.
    others: arrays [B, T, …].
    sums: how many there are.

  Returns:
    The sums, scalars; and (dx [B, T, D], dhead [D, V]).
  """
  head = sharding.constrain(head_DxV.astype(dtype), (None, "vocab"))

  def chunk(carry, operands):
    totals, dhead_MxDxV = carry
    x_MxBxTxD, *of_chunk = operands
    found, dlogits = loss_of(*_logits(operands, head), *of_chunk)
    dlogits = dlogits.astype(dtype)
    dx = jnp.einsum("MBTV,DV->MBTD", dlogits, head, preferred_element_type=jnp.float32)
    dhead = jnp.einsum("MBTD,MBTV->MDV", x_MxBxTxD.astype(dtype), dlogits, preferred_element_type=jnp.float32)
    totals = tuple(total_M + more_M for total_M, more_M in zip(totals, found, strict=True))
    return (totals, sharding.constrain(dhead_MxDxV + dhead, ("batch", None, "vocab"))), dx

  operands = _chunks(x_BxTxD, *others)
  zeros = (_zeros(operands),) * sums, _zeros(operands, head_DxV.shape, (None, "vocab"))
  (totals, dhead_MxDxV), dx_CxMxBxTxD = jax.lax.scan(chunk, zeros, operands)
  C, M, B, T, D = dx_CxMxBxTxD.shape
  dx_BxTxD = jnp.moveaxis(dx_CxMxBxTxD, 0, 2).reshape(M * B, C * T, D)[:, : x_BxTxD.shape[1]]
  gradients = dx_BxTxD.astype(x_BxTxD.dtype), jnp.sum(dhead_MxDxV, axis=0).astype(head_DxV.dtype)
  return tuple(map(jnp.sum, totals)), gradients


def _logits(operands, head_DxV):
  """float32 logits [M, B, T, V] of a chunk, and their log-sum-exp [M, B, T]."""
  x_MxBxTxD = operands[0].astype(head_DxV.dtype)
  logits = jnp.einsum("MBTD,DV->MBTV", x_MxBxTxD, head_DxV, preferred_element_type=jnp.float32)
  return logits, jax.nn.logsumexp(logits, axis=-1)


def _weighted_loss(logits_MxBxTxV, lse_MxBxT, targets_MxBxT, weights_MxBxT):
  """The weighted sum of the losses of each shard, [M]."""
  hit_MxBxT = jnp.take_along_axis(logits_MxBxTxV, targets_MxBxT[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(weights_MxBxT > 0, (lse_MxBxT - hit_MxBxT) * weights_MxBxT, 0), axis=(1, 2))


def _slope(logits_MxBxTxV, lse_MxBxT, targets_MxBxT, weights_MxBxT):
  """The derivative of `_weighted_loss` in the logits."""
  token = jax.lax.broadcasted_iota(targets_MxBxT.dtype, logits_MxBxTxV.shape, logits_MxBxTxV.ndim - 1)
  hit = (targets_MxBxT[..., None] == token).astype(logits_MxBxTxV.dtype)
  slope = (jnp.exp(logits_MxBxTxV - lse_MxBxT[..., None]) - hit) * weights_MxBxT[..., None]
  return jnp.where(weights_MxBxT[..., None] > 0, slope, 0)


def _zeros(operands, shape=(), axes=()):
  """float32 [M, *shape], a part on each shard."""
  zeros = jnp.zeros((operands[0].shape[1], *shape), jnp.float32)
  return sharding.constrain(parts.alike(zeros, operands[0])[0], ("batch", *axes))


def _chunks(*arrays_BxT):
  """Each [B, T, …] as [C, M, B/M, T/C, …], T padded with zeros to whole chunks."""
  B, T = arrays_BxT[0].shape[:2]
  M = sharding.batch_shards(B)
  width = -(-T // CHUNKS)

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, -T % CHUNKS)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.moveaxis(x.reshape(M, B // M, CHUNKS, width, *x.shape[2:]), 2, 0)
    return sharding.constrain(x, (None, "batch"))

  return tuple(map(cut, arrays_BxT))
