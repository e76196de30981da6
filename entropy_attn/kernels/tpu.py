"""Attention with entropy as Pallas kernels for TPUs.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; Q query rows and P keys of a tile.

Tiles of logits lie transposed, [P, Q]: what belongs to a query (running maximum, sums, scale, entropy) is then a row
along the lanes, stored densely as [B, H, 1, T], and a sum over keys adds whole registers. The mathematics are those of
the GPU kernels (gpu.py), in natural logarithms; a tile's products are the same in all passes.
"""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from entropy_attn.kernels import Forward, pallas
from entropy_attn.kernels.tpu_backward import backward
from entropy_attn.kernels.tpu_tile import (
  COMPILER_PARAMS,
  Plan,
  grow,
  nn,
  nt,
  padded,
  to_columns,
  to_rows,
  unscaled,
)

__all__ = ["backward", "forward", "unsupported"]

_WIDEST = {
  "bfloat16": 512,
  "float32": 384,
}  # the head width whose tiles fit vector memory (v4 … v6e, benchmarks/aot.py)


def unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK) -> str | None:
  """Why these inputs are not for this kernel; None if they are."""
  reason = pallas.unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, set(_WIDEST))
  widest = _WIDEST.get(k_BxSxGxK.dtype.name)
  if reason is None and k_BxSxGxK.shape[-1] > widest:
    return f"{k_BxSxGxK.dtype} heads of width {k_BxSxGxK.shape[-1]}, more than {widest}"
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
    q_BxTxHxK, k_BxSxGxK, v_BxSxGxK: float32 or bfloat16, alike.
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
  plan = Plan.of(T, S, causal, window)
  Q, P, T_, S_ = plan.Q, plan.P, plan.T_, plan.S_
  keep = plan.keep(keep_BxS, B)
  with_rest = with_rest and v_BxSxGxK.dtype != jnp.float32

  def kernel(q_ref, k_ref, v_t_ref, row_scale_ref, *refs):
    keep_ref, refs = (refs[0], refs[1:]) if keep is not None else (None, refs)
    out_t_ref, largest_ref, log_sum_ref, *more, sum_ref, m_ref, l_ref, r_ref = refs
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)
      m_ref[...] = jnp.full_like(m_ref, pallas.LOWEST)
      l_ref[...] = jnp.zeros_like(l_ref)
      r_ref[...] = jnp.zeros_like(r_ref)

    @pl.when(plan.reached(i, j))
    def _():
      u_PxQ, gain = unscaled(nt(k_ref[...], q_ref[...]), row_scale_ref[...], softcap)
      p_PxQ, z_PxQ, lower, shrink = grow(m_ref, u_PxQ, gain, plan.seen(i, j, keep_ref))
      if with_entropy:
        r_ref[...] = shrink * (r_ref[...] + lower * l_ref[...]) + jnp.sum(p_PxQ * z_PxQ, 0, keepdims=True)
      l_ref[...] = shrink * l_ref[...] + jnp.sum(p_PxQ, axis=0, keepdims=True)
      sum_ref[...] = sum_ref[...] * shrink + nn(v_t_ref[...], p_PxQ.astype(v_t_ref.dtype))

    @pl.when(j == S_ // P - 1)
    def _():
      l = l_ref[...]
      some = jnp.where(l == 0, 1.0, l)
      out = sum_ref[...] / some
      out_t_ref[...] = out.astype(out_t_ref.dtype)
      largest_ref[...] = jnp.where(l == 0, 0.0, m_ref[...])
      log_sum_ref[...] = jnp.log(some)
      if with_entropy:
        more[0][...] = jnp.log(some) - r_ref[...] / some
      if with_rest:
        more[-1][...] = (out - out.astype(out_t_ref.dtype).astype(jnp.float32)).astype(out_t_ref.dtype)

  rows = pl.BlockSpec((None, None, 1, Q), lambda b, h, i, j: (b, h, 0, i))
  columns = pl.BlockSpec((None, None, K, Q), lambda b, h, i, j: (b, h, 0, i))
  in_specs = [
    pl.BlockSpec((None, None, Q, K), lambda b, h, i, j: (b, h, i, 0)),
    pl.BlockSpec((None, None, P, K), lambda b, h, i, j: (b, jax.lax.div(h, R), plan.nearest_keys(i, j), 0)),
    pl.BlockSpec((None, None, K, P), lambda b, h, i, j: (b, jax.lax.div(h, R), 0, plan.nearest_keys(i, j))),
    pl.BlockSpec((None, 1, Q), lambda b, h, i, j: (h, 0, i)),
  ]
  if keep is not None:
    in_specs.append(pl.BlockSpec((None, 1, P), lambda b, h, i, j: (b, 0, plan.nearest_keys(i, j))))
  of_out, statistic = ((B, H, K, T_), v_BxSxGxK.dtype), ((B, H, 1, T_), jnp.float32)
  out_t, *results = pallas.call(
    kernel,
    [of_out, statistic, statistic] + [statistic] * with_entropy + [of_out] * with_rest,
    [
      to_rows(q_BxTxHxK, T_),
      to_rows(k_BxSxGxK, S_),
      to_columns(v_BxSxGxK, S_),
      padded(row_scale_HxT[:, None], T_),
      *([] if keep is None else [keep]),
    ],
    grid=(B, H, T_ // Q, S_ // P),
    in_specs=in_specs,
    out_specs=[columns, rows, rows] + [rows] * with_entropy + [columns] * with_rest,
    scratch_shapes=[pltpu.VMEM((K, Q), jnp.float32)] + [pltpu.VMEM((1, Q), jnp.float32)] * 3,
    compiler_params=COMPILER_PARAMS,
    interpret=interpret,
    name="entropy_attention_forward" if with_entropy else "attention_forward",
  )
  from_columns = lambda x: jnp.moveaxis(x, 3, 1)[:, :T]
  rest = from_columns(results.pop()) if with_rest else None
  peak, log_sum, *entropy = (x[:, :, 0, :T] for x in results)
  gain_HxT = jnp.abs(row_scale_HxT)[None] if softcap is None else softcap
  return Forward(from_columns(out_t), entropy[0] if with_entropy else None, gain_HxT * peak, log_sum, rest, peak)
