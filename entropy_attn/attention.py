"""Attention that returns its entropy: one public function, and what its implementations share.

Letters in array names: B batch, T query length, S key length, H heads, G key heads (they divide H), K head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn import parts
from entropy_attn.entropy import softmax_with_entropy
from entropy_attn.kernels import fused

IMPLEMENTATIONS = ("auto", "reference", "blockwise", "gpu", "tpu")
_STEEPEST = 2.0**100  # of scales over temperatures: one-hot in any case, and finite


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  *,
  temperature: jax.Array | float | None = None,
  scale: jax.Array | float | None = None,
  is_causal: bool = False,
  query_seq_lengths: jax.Array | None = None,
  key_value_seq_lengths: jax.Array | None = None,
  local_window_size: int | tuple[int, int] | None = None,
  logit_softcap: float | None = None,
  implementation: str = "auto",
  return_residual: bool = False,
) -> tuple[jax.Array, ...]:
  """`jax.nn.dot_product_attention` that also returns the entropy of each query's attention.

  a_ij = softmax_j(scale q_i·k_j / t_i + bias_ij), out_i = sum_j a_ij v_j, entropy_i = −sum_j a_ij log a_ij, all
  differentiable. Without the matrix a: with z_ij = log a_ij, the cotangents dout and g of out and entropy give
  ds_ij = a_ij (dout_i·v_j − dout_i·out_i − g_i (z_ij + entropy_i)), one multiply-add a logit more than without entropy.

  The arguments of `jax.nn.dot_product_attention` have its names, order, shapes and meanings.

  Args:
    query: [B, T, H, K].
    key: [B, S, G, K]; its heads may be fewer if they divide H (grouped-query attention).
    value: [B, S, G, V]. All three may lack the batch axis.
    bias: floating, broadcastable to [B, H, T, S]; added to the logits, −inf forbids.
    mask: boolean, broadcastable to [B, H, T, S]; True where a key may be attended. One of padding, [B, 1, 1, S], is
      the fastest.
    temperature: t, broadcast to [H] or [H, T] (paper, appendix A); above 1 diffuses, below 1 sharpens; 0 is the limit,
      the largest logit alone. None: 1.
    scale: of the logits, a number or broadcastable to [H, T]; None: 1 / sqrt(K).
    is_causal: query i attends to keys j ≤ i alone.
    query_seq_lengths: [B] integers; rows from there on are zero.
    key_value_seq_lengths: [B] integers; keys from there on are not attended to.
    local_window_size: (left, right), query i attends to keys i − left ≤ j ≤ i + right alone; one number for both.
    logit_softcap: c > 0, logits s become c tanh(s / c) before bias and masks. None: they stay.
    implementation: what computes it.
      auto: `gpu` on NVIDIA GPUs, `tpu` on TPUs, else `blockwise`.
      reference: materialises [B, H, T, S].
      blockwise: plain JAX, memory linear in T; keys outside a window cost nothing.
      gpu, tpu: fused kernels. What they cannot take (a float64 input, a bias, a mask with an axis of queries or heads,
        another platform) goes to `blockwise`, with one warning.
      All have derivatives of any order and in forward mode. Those of the kernels are blockwise's but for the gradient.
    return_residual: also returns the log-sum-exp of the logits.

  Returns:
    out [B, T, H, V] in the dtype of the values; entropy [B, T, H] in nats, float32 (float64 for float64 inputs); with
    return_residual log-sum-exp [B, T, H], too, a constant to derivatives. Rows that may attend to nothing are zero in
    out and entropy, and −inf in the residual; row 0 of causal attention has entropy 0.

  Raises:
    ValueError: for an unknown implementation, shapes or dtypes that do not fit, a window or cap that is negative.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
  query, key, value = map(jnp.asarray, (query, key, value))
  _check_shapes(query, key, value)
  q, k, v = (x if query.ndim == 4 else x[None] for x in (query, key, value))
  B, T, H, K = q.shape
  S = k.shape[1]
  shape = (B, H, T, S)
  row_scale_HxT = _row_scale(q, K**-0.5 if scale is None else scale, temperature)
  options = {"causal": bool(is_causal), "window": _window(local_window_size), "softcap": _softcap(logit_softcap)}
  keep = None if mask is None else _broadcastable("mask", mask, shape, jnp.bool_)
  if bias is not None:
    bias = _broadcastable("bias", bias, shape, jnp.floating).astype(row_scale_HxT.dtype)
  if key_value_seq_lengths is not None:
    valid_Bx1x1xS = _within("key_value_seq_lengths", key_value_seq_lengths, B, S)[:, None, None]
    keep = valid_Bx1x1xS if keep is None else keep & valid_Bx1x1xS
  real_BxT = None
  if query_seq_lengths is not None:
    real_BxT = _within("query_seq_lengths", query_seq_lengths, B, T)
    q = jnp.where(real_BxT[..., None, None], q, 0)  # whatever padding holds, no gradient sees it
  operands = q, k, v, row_scale_HxT, keep, bias
  if 0 in (B, T, S, H, v.shape[-1]):
    zeros = jnp.zeros((B, T, H), row_scale_HxT.dtype)
    found = [jnp.zeros((B, T, H, v.shape[-1]), v.dtype), zeros, zeros - jnp.inf]
  else:
    if implementation == "reference":
      attend = functools.partial(_reference, **options, with_lse=return_residual)
    else:
      kernel = fused.choose(implementation, q, k, v, keep, bias)
      attend = functools.partial(fused.attend, kernel, tuple(options.items()), return_residual)
    in_axes, out_axes = ("BTHK", "BSHK", "BSHV", "HT", "BHTS", "BHTS"), ("BTHV", "BHT", "BHT")[: 2 + return_residual]
    out_BxTxHxV, *statistics = parts.on_each(attend, in_axes, out_axes, "BH", *operands)
    found = [out_BxTxHxV, *(jnp.swapaxes(x, 1, 2) for x in statistics)]
  if real_BxT is not None:
    nothing = (0, 0, -jnp.inf)
    found = [jnp.where(jnp.expand_dims(real_BxT, range(2, x.ndim)), x, n) for x, n in zip(found, nothing, strict=False)]
  found = found[: 2 + return_residual]
  return tuple(x if query.ndim == 4 else x[0] for x in found)


def _reference(q_BxTxHxK, k_BxSxGxK, v_BxSxGxV, row_scale_HxT, keep, bias, *, causal, window, softcap, with_lse):
  """out [B, T, H, V], entropy [B, H, T] and, if asked for, log-sum-exp [B, H, T]."""
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxGxK.shape[1:3]
  q_BxTxGxRxK = q_BxTxHxK.reshape(B, T, G, H // G, K)
  logits = jnp.einsum("BTGRK,BSGK->BGRTS", q_BxTxGxRxK, k_BxSxGxK, preferred_element_type=row_scale_HxT.dtype)
  logits_BxHxTxS = logits.reshape(B, H, T, S) * row_scale_HxT[None, ..., None]
  if softcap is not None:
    logits_BxHxTxS = softcap * jnp.tanh(logits_BxHxTxS / softcap)
  if bias is not None:
    logits_BxHxTxS += bias
  left, right = (S + T, S + T) if window is None else window
  ahead_TxS = jnp.arange(S)[None] - jnp.arange(T)[:, None]
  near = ((ahead_TxS <= (0 if causal else right)) & (ahead_TxS >= -left))[None, None]
  keep = near if keep is None else keep & near
  probabilities_BxHxTxS, entropy_BxHxT = softmax_with_entropy(logits_BxHxTxS, keep)
  probabilities = probabilities_BxHxTxS.astype(v_BxSxGxV.dtype).reshape(B, G, H // G, T, S)
  out_BxTxGxRxV = jnp.einsum("BGRTS,BSGV->BTGRV", probabilities, v_BxSxGxV)
  found = [out_BxTxGxRxV.reshape(B, T, H, v_BxSxGxV.shape[-1]), entropy_BxHxT]
  if with_lse:
    masked_BxHxTxS = jnp.where(keep, jax.lax.stop_gradient(logits_BxHxTxS), -jnp.inf)
    found.append(jax.nn.logsumexp(masked_BxHxTxS, axis=-1))
  return tuple(found)


def _row_scale(q_BxTxHxK, scale, temperature) -> jax.Array:
  """What multiplies the products q_i·k_j, scale / t_i, [H, T]."""
  _, T, H, _ = q_BxTxHxK.shape
  scale = jnp.asarray(scale, np.promote_types(q_BxTxHxK.dtype, np.float32))
  if not _fits(scale, (H, T)):
    raise ValueError(f"scale {list(scale.shape)} is neither one number nor broadcastable to [{H}, {T}]")
  if temperature is None:
    return jnp.broadcast_to(scale, (H, T))
  t = jnp.asarray(temperature).astype(scale.dtype)
  if not _fits(t, (H,) if t.ndim < 2 else (H, T)):
    raise ValueError(f"temperature {list(t.shape)} is broadcastable neither to [{H}] heads nor to [{H}, {T}]")
  if t.ndim < 2:
    t = jnp.broadcast_to(t, (H,))[:, None]
  least = jax.lax.stop_gradient(jnp.abs(scale)) / _STEEPEST
  t = jnp.where(jnp.abs(t) < least, jnp.where(jnp.signbit(t), -least, least), t)
  return jnp.broadcast_to(_quotient(scale, t), (H, T))


@jax.custom_jvp
def _quotient(x, y):
  return x / y


@_quotient.defjvp
def _quotient_jvp(primals, tangents):
  # Divided twice by y, instead of once by its square: that of 1e-30 is 0.
  (x, y), (dx, dy) = primals, tangents
  quotient = _quotient(x, y)
  return quotient, (dx - quotient * dy) / y


def _fits(x, shape: tuple[int, ...]) -> bool:
  """Whether x is broadcastable to a shape."""
  return x.ndim <= len(shape) and all(n in (1, full) for n, full in zip(x.shape[::-1], shape[::-1], strict=False))


def _broadcastable(name, x, shape, kind):
  """x with four axes, each 1 or whole, the keys' whole."""
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, kind) or not _fits(x, shape):
    said = {jnp.bool_: "boolean", jnp.floating: "floating"}[kind]
    raise ValueError(f"{name} {x.dtype}{list(x.shape)} is not {said} and broadcastable to {list(shape)}")
  x = x.reshape((1,) * (4 - x.ndim) + x.shape)
  return jnp.broadcast_to(x, (*x.shape[:3], shape[3]))


def _within(name, lengths_B, B, n):
  """Which of n positions are within each sequence, [B, n]."""
  lengths_B = jnp.asarray(lengths_B)
  if lengths_B.shape != (B,) or not jnp.issubdtype(lengths_B.dtype, jnp.integer):
    raise ValueError(f"{name} {lengths_B.dtype}{list(lengths_B.shape)} is not {B} integers")
  return jnp.arange(n)[None] < lengths_B[:, None]


def _window(size) -> tuple[int, int] | None:
  if size is None:
    return None
  left, right = (size, size) if isinstance(size, int) else size
  if left < 0 or right < 0:
    raise ValueError(f"local_window_size={size!r} is negative")
  return int(left), int(right)


def _softcap(cap) -> float | None:
  if cap is not None and not cap > 0:
    raise ValueError(f"logit_softcap={cap!r} is not above 0")
  return None if cap is None else float(cap)


def _check_shapes(q, k, v) -> None:
  for name, array in (("query", q), ("key", k), ("value", v)):
    if array.ndim != q.ndim or array.ndim not in (3, 4):
      raise ValueError(f"{name} has shape {array.shape}: it needs four axes, [batch, length, heads, width]")
  if not (
    q.shape[:-3] == k.shape[:-3] == v.shape[:-3] and k.shape[-3:-1] == v.shape[-3:-1] and q.shape[-1] == k.shape[-1]
  ):
    raise ValueError(f"query {q.shape}, key {k.shape} and value {v.shape} do not fit together")
  if q.shape[-2] % k.shape[-2]:
    raise ValueError(f"{q.shape[-2]} query heads are not divisible by {k.shape[-2]} key heads")
