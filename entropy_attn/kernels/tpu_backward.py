"""The gradients of the TPU kernels: dq, and dk with dv; the letters of array names are those of tpu.py."""

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from entropy_attn.kernels import Forward, pallas
from entropy_attn.kernels.tpu_tile import (
  COMPILER_PARAMS,
  LEAST,
  Plan,
  grow,
  nn,
  nt,
  padded,
  to_columns,
  to_rows,
  unscaled,
)


def backward(
  q_BxTxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  row_scale_HxT,
  keep_BxS,
  forward: Forward,
  dout_BxTxHxK,
  dentropy_BxHxT,
  *,
  causal,
  window=None,
  softcap=None,
  interpret=False,
):
  """Gradients of `forward`: with p = exp z and dP = dout Vᵀ, ds = p (dP − delta − dentropy z).

  Args:
    forward: what `forward` gave; bfloat16 operands need its `rest`, or else the row terms have 8 bits, as `out` has.
    dentropy_BxHxT: cotangent of the entropy; None: zero, and not read.

  Returns:
    dq, dk, dv as q, k, v, and drow_scale [B, H, T].
  """
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxGxK.shape[1:3]
  if 0 in (B, T, H, S):
    return pallas.no_gradients(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)
  R = H // G
  plan = Plan.of(T, S, causal, window)
  Q, P, T_, S_ = plan.Q, plan.P, plan.T_, plan.S_
  keep = plan.keep(keep_BxS, B)
  row_scale = padded(row_scale_HxT[:, None], T_)
  q, k, v, dout = to_rows(q_BxTxHxK, T_), to_rows(k_BxSxGxK, S_), to_rows(v_BxSxGxK, S_), to_rows(dout_BxTxHxK, T_)
  operands = [q, k, v, dout, row_scale, *([] if keep is None else [keep])]
  n_operands = len(operands)
  whole = lambda x_BxHxT: padded(x_BxHxT[:, :, None], T_)
  dentropies = [] if dentropy_BxHxT is None else [whole(dentropy_BxHxT)]
  # Row terms from p and dP themselves. Without them, rows of one key alone (log_sum 0) have no gradient but of v: their
  # ds is rounding, which a scale that makes rows so sharp would multiply.
  exact = q.dtype == jnp.float32

  def split(refs):
    """The references of q, k, v, dout, row_scale, keep or None; and those of the rows' statistics and of the rest."""
    return list(refs[:n_operands]) + [None] * (keep is None), refs[n_operands:]

  def rows_kernel(*refs):
    """The row terms that the next kernels read, from the same products."""
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref), refs = split(refs)
    *dentropy, largest_ref, log_sum_ref, delta_ref, m_ref, l_ref, total_ref = refs
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
      m_ref[...] = jnp.full_like(m_ref, pallas.LOWEST)
      l_ref[...] = jnp.zeros_like(l_ref)
      total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when(plan.reached(i, j))
    def _():
      u_PxQ, gain = unscaled(nt(k_ref[...], q_ref[...]), row_scale_ref[...], softcap)
      p_PxQ, z_PxQ, lower, shrink = grow(m_ref, u_PxQ, gain, plan.seen(i, j, keep_ref))
      e_PxQ = nt(v_ref[...], dout_ref[...])
      total = total_ref[...]
      if dentropy:
        e_PxQ -= dentropy[0][...] * z_PxQ
        total -= dentropy[0][...] * lower * l_ref[...]
      total_ref[...] = shrink * total + jnp.sum(p_PxQ * e_PxQ, axis=0, keepdims=True)
      l_ref[...] = shrink * l_ref[...] + jnp.sum(p_PxQ, axis=0, keepdims=True)

    @pl.when(j == S_ // P - 1)
    def _():
      l = l_ref[...]
      some = jnp.where(l == 0, 1.0, l)
      log_sum = jnp.log(some)
      largest_ref[...] = jnp.where(l == 0, 0.0, m_ref[...])
      log_sum_ref[...] = log_sum
      delta_ref[...] = total_ref[...] / some + (dentropy[0][...] * log_sum if dentropy else 0.0)

  def gradients(i, j, operands, rows):
    """p and ds of a tile, [P, Q] float32, and what ds times it, summed over keys, is the row scale's gradient."""
    q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref = operands
    largest, log_sum, delta, *dentropy = (ref[...] for ref in rows)
    x_PxQ = nt(k_ref[...], q_ref[...])
    u_PxQ, gain = unscaled(x_PxQ, row_scale_ref[...], softcap)
    below_PxQ = u_PxQ - largest
    z_PxQ = pallas.at_least(jnp.where(below_PxQ > 0.0, 0.0, below_PxQ) * gain - log_sum, LEAST)
    z_PxQ = pallas.where(plan.seen(i, j, keep_ref), z_PxQ, LEAST)
    p_PxQ = jnp.exp(z_PxQ)
    ds_PxQ = nt(v_ref[...], dout_ref[...]) - delta
    if dentropy:
      ds_PxQ -= dentropy[0] * z_PxQ
    ds_PxQ = p_PxQ * ds_PxQ
    if softcap is not None:
      return p_PxQ, ds_PxQ * (1.0 - u_PxQ * u_PxQ), x_PxQ
    # By one figure a row less, for ds sum to zero.
    return p_PxQ, ds_PxQ, (u_PxQ - largest) * jnp.where(row_scale_ref[...] < 0, -1.0, 1.0)

  def of_several_keys(x, log_sum_ref):
    return x if exact else jnp.where(log_sum_ref[...] == 0, 0.0, x)

  def dq_kernel(k_t_ref, *refs):
    operands, refs = split(refs)
    *rows, middle_ref, dq_t_ref, drow_scale_ref, sum_ref, excess_ref, drow_sum_ref = refs
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)
      excess_ref[...] = jnp.zeros_like(excess_ref)
      drow_sum_ref[...] = jnp.zeros_like(drow_sum_ref)

    @pl.when(plan.reached(i, j))
    def _():
      _, ds_PxQ, x_PxQ = gradients(i, j, operands, rows)
      rounded_PxQ = ds_PxQ.astype(k_t_ref.dtype)
      sum_ref[...] += nn(k_t_ref[...], rounded_PxQ)
      excess_PxQ = rounded_PxQ.astype(jnp.float32)
      excess_PxQ = excess_PxQ if softcap is None else excess_PxQ - ds_PxQ
      excess_ref[...] += jnp.sum(excess_PxQ, axis=0, keepdims=True)
      drow_sum_ref[...] += jnp.sum(ds_PxQ * jnp.clip(x_PxQ, pallas.LOWEST, -pallas.LOWEST), axis=0, keepdims=True)

    @pl.when(j == S_ // P - 1)
    def _():
      row_scale_ref = operands[4]
      dq_t = of_several_keys(sum_ref[...] - middle_ref[...] * excess_ref[...], rows[1])
      dq_t_ref[...] = (dq_t * row_scale_ref[...]).astype(dq_t_ref.dtype)
      drow_scale_ref[...] = of_several_keys(drow_sum_ref[...], rows[1])

  def dkdv_kernel(*refs):
    operands, (*rows, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref) = split(refs)
    j, n = pl.program_id(2), pl.program_id(3)
    i = jax.lax.rem(n, T_ // Q)

    @pl.when(n == 0)
    def _():
      dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
      dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    @pl.when(plan.reached(i, j))
    def _():
      q_ref, _, _, dout_ref, row_scale_ref, _ = operands
      p_PxQ, ds_PxQ, _ = gradients(i, j, operands, rows)
      dv_sum_ref[...] += nn(p_PxQ.astype(dout_ref.dtype), dout_ref[...])
      ds_PxQ *= of_several_keys(row_scale_ref[...], rows[1])
      dk_sum_ref[...] += nn(ds_PxQ.astype(q_ref.dtype), q_ref[...])

    @pl.when(n == R * (T_ // Q) - 1)
    def _():
      dk_ref[...] = dk_sum_ref[...].astype(dk_ref.dtype)
      dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)

  def specs(of_query, of_key, n_rows):
    """Block specs of q, k, v, dout, row_scale, keep and rows' figures; of_query and of_key give (b, head, block)."""

    def spec(shape, place, order):
      return pl.BlockSpec(shape, lambda *grid: order(*place(*grid)))

    queries = spec((None, None, Q, K), of_query, lambda b, h, i: (b, h, i, 0))
    keys = spec((None, None, P, K), of_key, lambda b, g, j: (b, g, j, 0))
    row_scales = spec((None, 1, Q), of_query, lambda b, h, i: (h, 0, i))
    keeps = spec((None, 1, P), of_key, lambda b, g, j: (b, 0, j))
    rows = spec((None, None, 1, Q), of_query, lambda b, h, i: (b, h, 0, i))
    return [queries, keys, keys, queries, row_scales] + [keeps] * (keep is not None) + [rows] * n_rows

  prefix = "attention" if dentropy_BxHxT is None else "entropy_attention"
  statistic = ((B, H, 1, T_), jnp.float32)
  of_query, of_key = lambda b, h, i, j: (b, h, i), lambda b, h, i, j: (b, jax.lax.div(h, R), plan.nearest_keys(i, j))
  rows = pl.BlockSpec((None, None, 1, Q), lambda b, h, i, j: (b, h, 0, i))
  columns = pl.BlockSpec((None, None, K, Q), lambda b, h, i, j: (b, h, 0, i))
  by_queries = {"grid": (B, H, T_ // Q, S_ // P), "compiler_params": COMPILER_PARAMS, "interpret": interpret}
  if exact:
    statistics = pallas.call(
      rows_kernel,
      [statistic] * 3,
      operands + dentropies,
      in_specs=specs(of_query, of_key, len(dentropies)),
      out_specs=[rows] * 3,
      scratch_shapes=[pltpu.VMEM((1, Q), jnp.float32)] * 3,
      name=f"{prefix}_rows",
      **by_queries,
    )
  else:
    delta_BxHxT = pallas.row_term(forward, dout_BxTxHxK, dentropy_BxHxT)
    statistics = [whole(x) for x in (forward.unscaled_BxHxT, forward.log_sum_BxHxT, delta_BxHxT)]
  operands += [*statistics, *dentropies]
  n_rows = len(statistics) + len(dentropies)
  dq_t, drow_scale = pallas.call(
    dq_kernel,
    [((B, H, K, T_), q.dtype), statistic],
    [to_columns(k_BxSxGxK, S_), *operands, pallas.middle(k_BxSxGxK, keep_BxS)[..., None]],
    in_specs=[
      pl.BlockSpec((None, None, K, P), lambda b, h, i, j: (b, jax.lax.div(h, R), 0, plan.nearest_keys(i, j))),
      *specs(of_query, of_key, n_rows),
      pl.BlockSpec((None, None, K, 1), lambda b, h, i, j: (b, jax.lax.div(h, R), 0, 0)),
    ],
    out_specs=[columns, rows],
    scratch_shapes=[pltpu.VMEM((K, Q), jnp.float32)] + [pltpu.VMEM((1, Q), jnp.float32)] * 2,
    name=f"{prefix}_dq",
    **by_queries,
  )

  blocks = T_ // Q
  keys = pl.BlockSpec((None, None, P, K), lambda b, g, j, n: (b, g, j, 0))
  query_block = lambda b, g, j, n: (b, g * R + jax.lax.div(n, blocks), plan.nearest_rows(jax.lax.rem(n, blocks), j))
  dk, dv = pallas.call(
    dkdv_kernel,
    [(k.shape, k.dtype), (v.shape, v.dtype)],
    operands,
    grid=(B, G, S_ // P, R * blocks),
    in_specs=specs(query_block, lambda b, g, j, n: (b, g, j), n_rows),
    out_specs=[keys, keys],
    scratch_shapes=[pltpu.VMEM((P, K), jnp.float32)] * 2,
    compiler_params=COMPILER_PARAMS,
    interpret=interpret,
    name=f"{prefix}_dkdv",
  )
  dq_BxTxHxK = jnp.moveaxis(dq_t, 3, 1)[:, :T]
  return dq_BxTxHxK, jnp.swapaxes(dk, 1, 2)[:, :S], jnp.swapaxes(dv, 1, 2)[:, :S], drow_scale[:, :, 0, :T]
