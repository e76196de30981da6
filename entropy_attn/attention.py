"""Attention that returns its entropy: one public function, and what its implementations share.

Letters in array names: B batch, T query length, S key length, H heads, G key heads (they divide H), K head width.
"""

import functools
import warnings

import jax
import jax.numpy as jnp

from entropy_attn.entropy import softmax_with_entropy
from entropy_attn.kernels import blockwise

IMPLEMENTATIONS = ("auto", "reference", "blockwise", "gpu", "tpu")


def dot_product_attention(
  q_BxTxHxK: jax.Array,
  k_BxSxHxK: jax.Array,
  v_BxSxHxK: jax.Array,
  *,
  temperature: jax.Array | None = None,
  causal: bool = True,
  mask: jax.Array | None = None,
  scale: float | None = None,
  implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """`jax.nn.dot_product_attention` that also returns the entropy of each query's attention.

  a_ij = softmax_j(scale q_i·k_j / t_i), out_i = sum_j a_ij v_j, entropy_i = −sum_j a_ij log a_ij, all differentiable.
  Without the matrix a: with z_ij = log a_ij, the cotangents dout and g of out and entropy give
  ds_ij = a_ij (dout_i·v_j − dout_i·out_i − g_i (z_ij + entropy_i)), one multiply-add a logit more than without entropy.

  Args:
    q_BxTxHxK: queries.
    k_BxSxHxK: keys; their heads may be fewer if they divide H (grouped-query attention).
    v_BxSxHxK: values, with the keys' heads. All three may lack the batch axis.
    temperature: t, broadcast to [H] or [H, T] (paper, appendix A); above 1 diffuses, below 1 sharpens. None: 1.
    causal: query i attends to keys j ≤ i.
    mask: boolean, broadcastable to [B, H, T, S]; True where a key may be attended. One of padding, [B, 1, 1, S], is
      the fastest.
    scale: of the logits; None: 1 / sqrt(K).
    implementation: what computes it.
      auto: `gpu` on NVIDIA GPUs, `tpu` on TPUs, else `blockwise`.
      reference: materialises [B, H, T, S]; the only one with derivatives of any order and in forward mode.
      blockwise: plain JAX, memory linear in T.
      gpu, tpu: fused kernels. What they cannot take (a float64 input, a mask with an axis of queries or heads, another
        platform) goes to `blockwise`, with one warning.

  Returns:
    out [B, T, H, K] in the dtype of v; entropy [B, T, H] in nats, float32 (float64 for float64 inputs). Rows that may
    attend to nothing are zero in both; row 0 of causal attention has entropy 0.

  Raises:
    ValueError: for an unknown implementation, or shapes that do not fit.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
  _check_shapes(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK)
  if q_BxTxHxK.ndim == 3:
    out, entropy = dot_product_attention(
      q_BxTxHxK[None],
      k_BxSxHxK[None],
      v_BxSxHxK[None],
      temperature=temperature,
      causal=causal,
      mask=mask,
      scale=scale,
      implementation=implementation,
    )
    return out[0], entropy[0]
  B, T, H, K = q_BxTxHxK.shape
  S = k_BxSxHxK.shape[1]
  row_scale_HxT = _row_scale(q_BxTxHxK, K**-0.5 if scale is None else scale, temperature)
  if mask is not None:
    mask = _checked_mask(mask, (B, H, T, S))
  if implementation == "reference":
    return _reference(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, row_scale_HxT, mask, causal)
  kernel = _choose(implementation, q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, mask)
  out_BxTxHxK, entropy_BxHxT = _fused(kernel, causal, q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, row_scale_HxT, mask)
  return out_BxTxHxK, jnp.swapaxes(entropy_BxHxT, 1, 2)


def _reference(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, row_scale_HxT, mask, causal):
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxHxK.shape[1:3]
  q_BxTxGxRxK = q_BxTxHxK.reshape(B, T, G, H // G, K)
  logits = jnp.einsum("BTGRK,BSGK->BGRTS", q_BxTxGxRxK, k_BxSxHxK, preferred_element_type=row_scale_HxT.dtype)
  logits_BxHxTxS = logits.reshape(B, H, T, S) * row_scale_HxT[..., None]
  if causal:
    causal_TxS = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    mask = causal_TxS if mask is None else mask & causal_TxS
  probabilities_BxHxTxS, entropy_BxHxT = softmax_with_entropy(logits_BxHxTxS, mask)
  probabilities = probabilities_BxHxTxS.astype(v_BxSxHxK.dtype).reshape(B, G, H // G, T, S)
  out_BxTxGxRxK = jnp.einsum("BGRTS,BSGK->BTGRK", probabilities, v_BxSxHxK)
  return out_BxTxGxRxK.reshape(B, T, H, v_BxSxHxK.shape[-1]), jnp.swapaxes(entropy_BxHxT, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(kernel, causal, q, k, v, row_scale_HxT, mask):
  """(out [B, T, H, K], entropy [B, H, T]) by `kernel`."""
  return _forward(kernel, causal, q, k, v, row_scale_HxT, mask)[:2]


def _fused_forward(kernel, causal, q, k, v, row_scale_HxT, mask):
  out, entropy_BxHxT, lse_BxHxT = _forward(kernel, causal, q, k, v, row_scale_HxT, mask)
  return (out, entropy_BxHxT), (q, k, v, row_scale_HxT, mask, out, entropy_BxHxT, lse_BxHxT)


def _fused_backward(kernel, causal, saved, cotangents):
  q, k, v, row_scale_HxT, mask, out, entropy_BxHxT, lse_BxHxT = saved
  dout, dentropy_BxHxT = cotangents
  wide = lse_BxHxT.dtype
  dout_out_BxTxH = jnp.sum(dout.astype(wide) * out.astype(wide), axis=-1)
  delta_BxHxT = jnp.swapaxes(dout_out_BxTxH, 1, 2) + dentropy_BxHxT * entropy_BxHxT
  operands = (q, k, v, row_scale_HxT, mask, lse_BxHxT, dout, delta_BxHxT, dentropy_BxHxT)
  dq, dk, dv, drow_scale_BxHxT = _per_platform(kernel, "backward", operands, causal)
  return dq, dk, dv, jnp.sum(drow_scale_BxHxT, axis=0), None


_fused.defvjp(_fused_forward, _fused_backward)


def _forward(kernel, causal, q, k, v, row_scale_HxT, mask):
  out, entropy_BxHxT, lse_BxHxT = _per_platform(kernel, "forward", (q, k, v, row_scale_HxT, mask), causal)
  return out, jnp.where(entropy_BxHxT < 0, 0, entropy_BxHxT), lse_BxHxT  # rounding alone is below 0; NaN stays


def _per_platform(kernel, direction, operands, causal):
  """`direction` of the kernel on the platform that the program is lowered for; of `blockwise` on any other."""
  plain = functools.partial(getattr(blockwise, direction), causal=causal)
  if kernel == "blockwise":
    return plain(*operands)
  pallas = functools.partial(getattr(_module(kernel), direction), causal=causal)

  def fused(q, k, v, row_scale_HxT, mask, *rest):
    keep_BxS = None if mask is None else jnp.broadcast_to(mask[:, 0, 0], (len(q), mask.shape[-1]))
    return pallas(q, k, v, row_scale_HxT, keep_BxS, *rest)

  return jax.lax.platform_dependent(*operands, default=plain, **{_PLATFORMS[kernel]: fused})


_PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}  # of the Pallas kernels


def _module(kernel):
  # Only where they are used: importing Pallas takes longer than the rest of this package.
  if kernel == "gpu":
    from entropy_attn.kernels import gpu

    return gpu
  from entropy_attn.kernels import tpu

  return tpu


def _choose(implementation, q, k, v, mask) -> str:
  """The kernel that takes these inputs, the asked one first."""
  backend = jax.default_backend()
  if implementation == "auto":
    implementation = backend if backend in _PLATFORMS else "blockwise"
  if implementation == "blockwise":
    return implementation
  reason = _module(implementation).unsupported(q, k, v)
  if mask is not None and mask.shape[1:3] != (1, 1):
    reason = f"a mask of shape {mask.shape}, with an axis of heads or queries"
  if reason:
    _warn_once(f"attention: implementation={implementation!r} cannot take {reason}; 'blockwise' takes its place")
    return "blockwise"
  if backend != implementation:
    _warn_once(f"attention: implementation={implementation!r} is for {implementation.upper()}s; here 'blockwise' runs")
  return implementation


@functools.cache
def _warn_once(message: str) -> None:
  warnings.warn(message, stacklevel=4)


def _row_scale(q_BxTxHxK, scale: float, temperature) -> jax.Array:
  """What multiplies the products q_i·k_j, scale / t_i, [H, T]."""
  _, T, H, _ = q_BxTxHxK.shape
  numerator = jnp.asarray(scale, jnp.promote_types(q_BxTxHxK.dtype, jnp.float32))
  if temperature is None:
    return jnp.broadcast_to(numerator, (H, T))
  temperature = jnp.asarray(temperature).astype(numerator.dtype)
  if temperature.ndim < 2:
    temperature = jnp.broadcast_to(temperature, (H,))[:, None]
  return jnp.broadcast_to(numerator / temperature, (H, T))


def _checked_mask(mask, shape):
  """The mask with four axes, each 1 or whole, the keys' whole."""
  fits = mask.ndim <= 4 and all(n in (1, full) for n, full in zip(mask.shape[::-1], shape[::-1], strict=False))
  if mask.dtype != bool or not fits:
    raise ValueError(f"mask {mask.dtype}{list(mask.shape)} is not boolean and broadcastable to {list(shape)}")
  mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
  return jnp.broadcast_to(mask, (*mask.shape[:3], shape[3]))


def _check_shapes(q, k, v) -> None:
  for name, array in (("q", q), ("k", k), ("v", v)):
    if array.ndim != q.ndim or array.ndim not in (3, 4):
      raise ValueError(f"{name} has shape {array.shape}: it needs four axes, [batch, length, heads, width]")
  if not (
    q.shape[:-3] == k.shape[:-3] == v.shape[:-3] and k.shape[-3:-1] == v.shape[-3:-1] and q.shape[-1] == k.shape[-1]
  ):
    raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
  if q.shape[-2] % k.shape[-2]:
    raise ValueError(f"{q.shape[-2]} query heads are not divisible by {k.shape[-2]} key heads")
