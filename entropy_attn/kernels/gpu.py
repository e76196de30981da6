"""Attention with entropy as Pallas kernels for NVIDIA GPUs, compiled by Triton (Ampere and later).

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; Q query rows and P keys of a tile.

The forward pass walks over the keys once, with three running sums a row: with m the largest logit so far,
l = sum exp(s − m), r = sum exp(s − m)(s − m) and the output's. When m grows to m', with a = exp(m − m'):
r ← a (r + (m − m') l), l ← a l. Then entropy = log l − r / l.

A logit is s = gain · u with a gain of the row, positive, and u = ± q·k (or the hyperbolic tangent under a soft cap).
Differences are taken of u, where they are exact for what is near, and only then scaled: no rounding of a large logit
comes into p, whether the compiler fuses multiplications with subtractions or not. They are held in base 2.

In the gradient ds = p (e − sum p e) with e = dP − dentropy log p. Float32 takes that sum, the row term, from a kernel
of its own, of the very p and dP of the next: so it is the softmax's derivative to the last digits, and zero for a
one-hot row. 16-bit operands take it from the entropy and from `out` with what rounding took from that (`rest`). They
round ds for its products: what keys have in common is taken out of dq (`pallas.middle`), and the row scale's gradient
is summed before. In bfloat16 dq is off by 0.24 % whether keys share an offset of 8 or none, as `jax.nn`'s (1.6 %
without `middle`).

JAX deprecated Pallas' Triton backend in 0.11, which warns and still runs; in its place come Mosaic GPU
(jax.experimental.pallas.mosaic_gpu: Hopper and later alone) or Triton itself through jax_triton.
"""

from jax.experimental import pallas as pl
import jax.numpy as jnp

from entropy_attn.kernels import Forward, pallas
from entropy_attn.kernels.gpu_backward import backward
from entropy_attn.kernels.gpu_tile import (
  LN2,
  compiler_params,
  factor_and_gain,
  grow,
  over_keys,
  padded,
  precision_of,
  product,
  scores,
  seen_of,
  tiles,
  unscaled,
)

__all__ = ["backward", "forward", "tiles", "unsupported"]


def unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK) -> str | None:
  """Why these inputs are not for this kernel; None if they are."""
  reason = pallas.unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, {"float32", "bfloat16", "float16"})
  if reason is None and tiles(k_BxSxGxK.dtype, k_BxSxGxK.shape[-1]) is None:
    return f"{k_BxSxGxK.dtype} heads of width {k_BxSxGxK.shape[-1]}"
  return reason


def forward(
  q_BxTxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  row_scale_HxT,
  keep_BxS,
  *,
  causal,
  window=None,
  softcap=None,
  with_entropy=True,
  with_rest=False,
  interpret=False,
) -> Forward:
  """Attention with logits row_scale_i q_i·k_j.

  Args:
    q_BxTxHxK, k_BxSxGxK, v_BxSxGxK: float32, bfloat16 or float16, alike.
    row_scale_HxT: float32.
    keep_BxS: boolean, False where a key may not be attended; None: all may.
    causal: query i attends to keys j ≤ i.
    window: (left, right): query i attends to keys i − left ≤ j ≤ i + right; other tiles are not read. None: to all.
    softcap: c, of logits c tanh(s / c); None: s.
    with_entropy: False leaves the entropy out: the yardstick of the benchmarks.
    with_rest: gives what rounding took from `out`, for the gradient's sake.
    interpret: runs on any platform, slowly.
  """
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxGxK.shape[1:3]
  if 0 in (B, T, H, S):
    return pallas.nothing(q_BxTxHxK, v_BxSxGxK, with_entropy, with_rest)
  R = H // G
  tile = tiles(q_BxTxHxK.dtype, K)["forward"]
  Q, P = tile.Q, tile.P
  precision = precision_of(q_BxTxHxK.dtype, interpret)
  left, right = pallas.band(causal, window, T, S)
  q, k, v, row_scale, keep = padded(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, Q, P, right)
  T_, S_, K_ = q.shape[1], k.shape[1], q.shape[3]
  with_rest = with_rest and v.dtype != jnp.float32

  def kernel(q_ref, k_ref, v_ref, row_scale_ref, *refs):
    keep_ref, refs = (refs[0], refs[1:]) if keep is not None else (None, refs)
    out_ref, largest_ref, log_sum_ref, *more = refs
    i = pl.program_id(0)
    q_QxK = q_ref[...]
    factor_Q, gain_Q = factor_and_gain(row_scale_ref[...], softcap)

    def step(j, carry, edge):
      out_QxK, m, l, r = carry
      keys = pl.ds(j * P, P)
      u_QxP = unscaled(scores(q_QxK, k_ref[keys, :], precision), factor_Q[:, None], softcap)
      seen_QxP = seen_of(i * Q, j * P, (Q, P), 0, left if edge else None, right if edge else None, keep_ref, keys)
      grown, p_QxP, z_QxP, lower, shrink = grow(m, u_QxP, gain_Q, seen_QxP)
      if with_entropy:
        r = shrink * (r + lower * l) + jnp.sum(p_QxP * z_QxP, axis=1)
      l = shrink * l + jnp.sum(p_QxP, axis=1)
      v_PxK = v_ref[keys, :]
      out_QxK = out_QxK * shrink[:, None] + product(p_QxP.astype(v_PxK.dtype), v_PxK, precision)
      return out_QxK, grown, l, r

    zeros_Q = jnp.zeros((Q,), jnp.float32)
    carry = jnp.zeros((Q, K_), jnp.float32), zeros_Q + pallas.LOWEST, zeros_Q, zeros_Q
    out_QxK, m, l, r = over_keys(step, carry, i, Q, P, S_ // P, left, right)
    some = jnp.where(l == 0, 1.0, l)
    out_QxK /= some[:, None]
    out_ref[...] = out_QxK.astype(out_ref.dtype)
    largest_ref[...] = jnp.where(l == 0, 0.0, m)
    log_sum_ref[...] = jnp.log(some)
    if with_entropy:
      more[0][...] = jnp.log(some) - LN2 * r / some
    if with_rest:
      more[-1][...] = (out_QxK - out_QxK.astype(out_ref.dtype).astype(jnp.float32)).astype(out_ref.dtype)

  rows = pl.BlockSpec((None, None, Q), lambda i, b, h: (b, h, i))
  queries = pl.BlockSpec((None, Q, None, K_), lambda i, b, h: (b, i, h, 0))
  keys = pl.BlockSpec((None, S_, None, K_), lambda i, b, h: (b, 0, h // R, 0))
  in_specs = [queries, keys, keys, pl.BlockSpec((None, Q), lambda i, b, h: (h, i))]
  if keep is not None:
    in_specs.append(pl.BlockSpec((None, S_), lambda i, b, h: (b, 0)))
  of_out, statistic = ((B, T_, H, K_), v.dtype), ((B, H, T_), jnp.float32)
  out, *results = pallas.call(
    kernel,
    [of_out, statistic, statistic] + [statistic] * with_entropy + [of_out] * with_rest,
    [x for x in (q, k, v, row_scale, keep) if x is not None],
    grid=(T_ // Q, B, H),
    in_specs=in_specs,
    out_specs=[queries, rows, rows] + [rows] * with_entropy + [queries] * with_rest,
    compiler_params=compiler_params(tile),
    interpret=interpret,
    name="entropy_attention_forward" if with_entropy else "attention_forward",
  )
  rest = results.pop()[:, :T, :, :K] if with_rest else None
  peak, log_sum, *entropy = (x[..., :T] for x in results)
  gain_HxT = jnp.abs(row_scale_HxT)[None] if softcap is None else softcap
  return Forward(out[:, :T, :, :K], entropy[0] if with_entropy else None, gain_HxT * peak, log_sum, rest, peak)
