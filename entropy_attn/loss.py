"""Cross-entropy of a large vocabulary, in chunks of tokens: the logits of the whole batch never exist at once.

Letters in array names: C chunks, M shards of the batch, N tokens of a chunk in a shard, B sequences, T tokens, D model
width (E: of a teacher), V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from entropy_attn import parts, sharding

CHUNKS = 8  # at most
# At least, of a shard. Each chunk reads and writes the whole gradient of the head: with fewer tokens that is no small
# part of their products' time.
_TOKENS = 512


def cross_entropy_sum(
  x_BxTxD: jax.Array,
  head: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  dtype: str = "float32",
  axes: str = "DV",
) -> jax.Array:
  """Weighted sum of −log softmax(x head)[target] over the tokens, in nats.

  Differentiable in x and head. The gradients are made together with the loss, chunk by chunk: the logits are computed
  once, and of them (float32) 1/8 is ever held, or those of 1,024 tokens where that is more. Chunks are cut along T, so
  that no token leaves its device, and each device adds up its own part of the head's gradient: one reduction at the
  end, whatever the number of chunks.

  Args:
    x_BxTxD: final hidden states.
    head: the vocabulary projection, [D, V], or [V, D] as a token embedding is.
    targets_BxT: integers.
    weights_BxT: of each token's loss; where 0, nothing the token holds matters.
    dtype: of the operands of the products; they are accumulated in float32.
    axes: of the head, "DV" or "VD".

  Returns:
    A float32 scalar.
  """
  fn = lambda *operands: (_cross_entropy(*parts.alike(*operands), dtype, axes),)
  return parts.on_each(fn, ("BTD", axes, "BT", "BT"), ("",), "B", x_BxTxD, head, targets_BxT, weights_BxT)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(x_BxTxD, head, targets_BxT, weights_BxT, dtype, axes):
  head = _laid_out(head, axes, dtype)

  def chunk(operands):
    return _weighted_loss(*_logits(operands, head, axes), *operands[1:])

  return jnp.sum(jax.lax.map(chunk, _chunks(x_BxTxD, targets_BxT, weights_BxT)))


def _forward(x_BxTxD, head, targets_BxT, weights_BxT, dtype, axes):
  def loss_of(logits, lse, targets, weights):
    return (_weighted_loss(logits, lse, targets, weights),), _slope(logits, lse, targets, weights)

  (total,), gradients = _with_gradients(loss_of, x_BxTxD, head, (targets_BxT, weights_BxT), dtype, axes)
  return total, gradients


def _backward(dtype, axes, saved, dtotal):
  dx_BxTxD, dhead = saved
  return dx_BxTxD * dtotal, dhead * dtotal, None, None


_cross_entropy.defvjp(_forward, _backward)


def distilled_sum(
  x_BxTxD: jax.Array,
  head: jax.Array,
  teacher: tuple[jax.Array, jax.Array],
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  *,
  weight: float,
  temperature: float,
  dtypes: tuple[str, str] = ("float32", "float32"),
  axes: tuple[str, str] = ("DV", "DV"),
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Weighted sums over the tokens of (1 − weight) CE + weight t² KL, of CE, and of KL, in nats.

  CE is that of `cross_entropy_sum`, KL = KL(softmax(teacher's logits / t) ‖ softmax(logits / t)). t² gives the KL the
  gradients of t = 1 (Hinton, Vinyals & Dean 2015, arXiv:1503.02531). The first sum alone is differentiable, in x and
  head; its gradients are made as those of `cross_entropy_sum`: of neither model are more logits held than there.

  Args:
    x_BxTxD, head: final hidden states of the student, and its vocabulary projection.
    teacher: the same two of the teacher, whose width may be another.
    targets_BxT, weights_BxT: as for `cross_entropy_sum`; the weights are those of the KL, too.
    weight: in 0 … 1.
    temperature: t > 0.
    dtypes: of the operands of the student's products, and of the teacher's.
    axes: of the student's head and of the teacher's, each "DV" or "VD".

  Returns:
    Three float32 scalars.
  """
  operands = (x_BxTxD, head, *jax.lax.stop_gradient(teacher), targets_BxT, weights_BxT)
  fn = lambda *operands: _distilled(*parts.alike(*operands), weight, temperature, dtypes, axes)
  letters = ("BTD", axes[0], "BTE", axes[1].replace("D", "E"), "BT", "BT")
  total, cross_entropy, kl = parts.on_each(fn, letters, ("", "", ""), "B", *operands)
  return total, jax.lax.stop_gradient(cross_entropy), jax.lax.stop_gradient(kl)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def _distilled(*operands):
  return _distilled_forward(*operands)[0]


def _distilled_forward(x, head, teacher_x, teacher_head, targets_BxT, weights_BxT, weight, temperature, dtypes, axes):
  teacher_head = _laid_out(teacher_head, axes[1], dtypes[1])

  def loss_of(logits, lse, teacher_x, targets, weights):
    taught = jax.nn.log_softmax(_logits((teacher_x,), teacher_head, axes[1])[0] / temperature)
    learned = jax.nn.log_softmax(logits / temperature)
    kl_MxN = jnp.sum(jnp.exp(taught) * (taught - learned), axis=-1)
    cross_entropy = _weighted_loss(logits, lse, targets, weights)
    kl = jnp.sum(jnp.where(weights > 0, kl_MxN * weights, 0), axis=1)
    slope = (jnp.exp(learned) - jnp.exp(taught)) * weights[..., None]  # of KL in logits / t
    dlogits = (1 - weight) * _slope(logits, lse, targets, weights)
    dlogits = dlogits + weight * temperature * jnp.where(weights[..., None] > 0, slope, 0)
    return ((1 - weight) * cross_entropy + weight * temperature**2 * kl, cross_entropy, kl), dlogits

  return _with_gradients(loss_of, x, head, (teacher_x, targets_BxT, weights_BxT), dtypes[0], axes[0])


def _distilled_backward(weight, temperature, dtypes, axes, saved, dsums):
  dx_BxTxD, dhead = saved
  return dx_BxTxD * dsums[0], dhead * dsums[0], None, None, None, None


_distilled.defvjp(_distilled_forward, _distilled_backward)


def _with_gradients(loss_of, x_BxTxD, head, others, dtype: str, axes: str):
  """Sums over the tokens, and the gradients of the first of them, chunk by chunk.

  Args:
    loss_of: (logits [M, N, V], their log-sum-exp, *others) of a chunk → a tuple of sums [M], and the slope of the first
      in the logits.
    others: arrays [B, T, …].

  Returns:
    The sums, scalars; and the gradients of x and head.
  """
  cast = _laid_out(head, axes, dtype)

  def chunk(operands):
    x_MxNxD, *of_chunk = operands
    sums, dlogits = loss_of(*_logits(operands, cast, axes), *of_chunk)
    dlogits = dlogits.astype(dtype)
    dx = jnp.einsum(f"MNV,{axes}->MND", dlogits, cast, preferred_element_type=jnp.float32)
    dhead = jnp.einsum(f"MND,MNV->M{axes}", x_MxNxD.astype(dtype), dlogits, preferred_element_type=jnp.float32)
    return (sums, _of_head(dhead, axes)), dx

  def more(carry, operands):
    (sums, dhead), dx = chunk(operands)
    sums, dhead = jax.tree.map(jnp.add, carry, (sums, dhead))
    return (sums, _of_head(dhead, axes)), dx

  operands = _chunks(x_BxTxD, *others)
  carry, first_dx = chunk([x[0] for x in operands])
  dx_CxMxNxD = first_dx[None]
  if len(operands[0]) > 1:  # jax_disable_jit has no loop of no turns
    carry, dx = jax.lax.scan(more, carry, [x[1:] for x in operands])
    dx_CxMxNxD = jnp.concatenate([dx_CxMxNxD, dx])
  sums, dhead = carry
  gradients = _joined(dx_CxMxNxD, x_BxTxD), jnp.sum(dhead, axis=0).astype(head.dtype)
  return tuple(map(jnp.sum, sums)), gradients


def _logits(operands, head, axes: str):
  """float32 logits [M, N, V] of a chunk, and their log-sum-exp [M, N]."""
  x_MxNxD = operands[0].astype(head.dtype)
  logits = jnp.einsum(f"MND,{axes}->MNV", x_MxNxD, head, preferred_element_type=jnp.float32)
  return logits, jax.nn.logsumexp(logits, axis=-1)


def _weighted_loss(logits_MxNxV, lse_MxN, targets_MxN, weights_MxN):
  """The weighted sum of the losses of each shard, [M]."""
  hit_MxN = jnp.take_along_axis(logits_MxNxV, targets_MxN[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(weights_MxN > 0, (lse_MxN - hit_MxN) * weights_MxN, 0), axis=1)


def _slope(logits_MxNxV, lse_MxN, targets_MxN, weights_MxN):
  """The derivative of `_weighted_loss` in the logits."""
  token = jax.lax.broadcasted_iota(targets_MxN.dtype, logits_MxNxV.shape, logits_MxNxV.ndim - 1)
  hit = (targets_MxN[..., None] == token).astype(logits_MxNxV.dtype)
  slope = (jnp.exp(logits_MxNxV - lse_MxN[..., None]) - hit) * weights_MxN[..., None]
  return jnp.where(weights_MxN[..., None] > 0, slope, 0)


def _laid_out(head, axes: str, dtype: str):
  """The head as an operand of the products, each device with its part of the vocabulary."""
  return sharding.constrain(head.astype(dtype), _logical(axes))


def _of_head(dhead, axes: str):
  """A gradient of the head, [M, *head.shape], a part on each shard."""
  return sharding.constrain(dhead, ("batch", *_logical(axes)))


def _logical(axes: str) -> tuple[str | None, ...]:
  return tuple({"D": None, "V": "vocab"}[axis] for axis in axes)


def _chunks(*arrays_BxT):
  """Each [B, T, …] as [C, M, N, …], N = B/M · T/C, T padded with zeros to whole chunks."""
  B, T = arrays_BxT[0].shape[:2]
  M = sharding.batch_shards(B)
  # Of sizes that are symbols nothing is known: the most chunks.
  most = min(CHUNKS, max(1, B // M * T // _TOKENS)) if isinstance(B, int) and isinstance(T, int) else CHUNKS
  width = -(-T // most)

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, -T % most)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.moveaxis(x.reshape(M, B // M, most, width, *x.shape[2:]), 2, 0)
    return sharding.constrain(x.reshape(most, M, B // M * width, *x.shape[4:]), (None, "batch"))

  return tuple(map(cut, arrays_BxT))


def _joined(x_CxMxNxD, like_BxTxD):
  """The inverse of `_chunks`, in the dtype of the other."""
  C, M = x_CxMxNxD.shape[:2]
  B, T, D = like_BxTxD.shape
  width = -(-T // C)
  x = jnp.moveaxis(x_CxMxNxD.reshape(C, M, B // M, width, D), 0, 2)
  return x.reshape(B, C * width, D)[:, :T].astype(like_BxTxD.dtype)
