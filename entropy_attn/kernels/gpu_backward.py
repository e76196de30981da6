"""The gradients of the GPU kernels: row terms, dq, and dk with dv; the letters of array names are those of gpu.py."""

import math

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from entropy_attn.kernels import Forward, pallas
from entropy_attn.kernels.gpu_tile import (
  LEAST,
  LN2,
  LOG2E,
  compiler_params,
  factor_and_gain,
  grow,
  over_keys,
  pad,
  padded,
  precision_of,
  product,
  scores,
  seen_of,
  through_cap,
  tiles,
  unscaled,
)

_NEAR = 2.0**-21  # products in another order differ by such parts of their size


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
    forward: what `forward` gave; 16-bit operands need its `rest`, or else the row terms have 8 bits, as `out` has.
    dentropy_BxHxT: cotangent of the entropy; None: zero, and not read.

  Returns:
    dq, dk, dv as q, k, v, and drow_scale [B, H, T].
  """
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxGxK.shape[1:3]
  if 0 in (B, T, H, S):
    return pallas.no_gradients(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)
  R = H // G
  tile = tiles(q_BxTxHxK.dtype, K, softcap)
  precision = precision_of(q_BxTxHxK.dtype, interpret)
  dq_tile, dkdv_tile = tile["dq"], tile["dkdv"]
  left, right = pallas.band(causal, window, T, S)
  whole = math.lcm(dq_tile.Q, dkdv_tile.Q), math.lcm(dq_tile.P, dkdv_tile.P)
  q, k, v, row_scale, keep = padded(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, *whole, right)
  T_, S_, K_ = q.shape[1], k.shape[1], q.shape[3]
  dout = pad(dout_BxTxHxK, (B, T_, H, K_))
  operands = [x for x in (q, k, v, dout, row_scale, keep) if x is not None]
  n_operands = len(operands)
  # Row terms from p and dP themselves. Without them, rows of one key alone (log_sum 0) have no gradient but of v: their
  # ds is rounding, which a scale that makes rows so sharp would multiply.
  exact = q.dtype == jnp.float32
  # In base 2: dentropy z = (dentropy ln 2) (z / ln 2).
  dentropies = [] if dentropy_BxHxT is None else [pad(dentropy_BxHxT * LN2, (B, H, T_))]

  def split(refs):
    """The references of q, k, v, dout, row_scale, keep or None; those of the rows' statistics and of the results."""
    tensors = list(refs[:n_operands])
    return tensors + [None] * (keep is None), refs[n_operands:]

  def weights(u, gain, largest, log_sum, seen, near=None):
    """p and log2 p; whatever is as near to the largest as `near` is the largest."""
    below = u - largest
    below = jnp.where(below > (0.0 if near is None else -near), 0.0, below)
    z = pallas.where(seen, pallas.at_least(below * gain - log_sum, LEAST), LEAST)
    return jnp.exp2(z), z

  def rows_kernel(*refs):
    """The row terms that the next kernels read, from the same products."""
    Q, P = dq_tile.Q, dq_tile.P
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref), refs = split(refs)
    *dentropy_ref, largest_ref, log_sum_ref, delta_ref = refs
    i = pl.program_id(0)
    q_QxK, dout_QxK = q_ref[...], dout_ref[...]
    factor_Q, gain_Q = factor_and_gain(row_scale_ref[...], softcap)
    dentropy_Q = [ref[...] for ref in dentropy_ref]

    def step(j, carry, edge):
      m, l, total = carry
      keys = pl.ds(j * P, P)
      u_QxP = unscaled(scores(q_QxK, k_ref[keys, :], precision), factor_Q[:, None], softcap)
      seen_QxP = seen_of(i * Q, j * P, (Q, P), 0, left if edge else None, right if edge else None, keep_ref, keys)
      grown, p_QxP, z_QxP, lower, shrink = grow(m, u_QxP, gain_Q, seen_QxP)
      e_QxP = scores(dout_QxK, v_ref[keys, :], precision)
      if dentropy_Q:
        e_QxP -= dentropy_Q[0][:, None] * z_QxP
        total -= dentropy_Q[0] * lower * l
      return grown, shrink * l + jnp.sum(p_QxP, axis=1), shrink * total + jnp.sum(p_QxP * e_QxP, axis=1)

    zeros_Q = jnp.zeros((Q,), jnp.float32)
    m, l, total = over_keys(step, (zeros_Q + pallas.LOWEST, zeros_Q, zeros_Q), i, Q, P, S_ // P, left, right)
    some = jnp.where(l == 0, 1.0, l)
    log_sum = jnp.log2(some)
    largest_ref[...] = jnp.where(l == 0, 0.0, m)
    log_sum_ref[...] = log_sum
    delta_ref[...] = total / some + (dentropy_Q[0] * log_sum if dentropy_Q else 0.0)

  def dq_kernel(*refs):
    Q, P = dq_tile.Q, dq_tile.P
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref), (*rows, dq_ref, drow_scale_ref) = split(refs)
    i = pl.program_id(0)
    q_QxK, dout_QxK = q_ref[...], dout_ref[...]
    row_scale_Q = row_scale_ref[...]
    factor_Q, gain_Q = factor_and_gain(row_scale_Q, softcap)
    middle_ref = None if exact else rows.pop()
    largest_Q, log_sum_Q, delta_Q, *dentropy_Q = (ref[...] for ref in rows)

    def step(j, sums, edge):
      dq_QxK, excess_Q, drow_scale_Q = sums
      keys = pl.ds(j * P, P)
      k_PxK = k_ref[keys, :]
      seen_QxP = seen_of(i * Q, j * P, (Q, P), 0, left if edge else None, right if edge else None, keep_ref, keys)
      x_QxP = scores(q_QxK, k_PxK, precision)
      u_QxP = unscaled(x_QxP, factor_Q[:, None], softcap)
      p_QxP, z_QxP = weights(u_QxP, gain_Q[:, None], largest_Q[:, None], log_sum_Q[:, None], seen_QxP)
      ds_QxP = scores(dout_QxK, v_ref[keys, :], precision) - delta_Q[:, None]
      if dentropy_Q:
        ds_QxP -= dentropy_Q[0][:, None] * z_QxP
      ds_QxP = through_cap(p_QxP * ds_QxP, u_QxP, softcap)
      rounded_QxP = ds_QxP.astype(k_PxK.dtype)
      if not exact:
        wide_QxP = rounded_QxP.astype(jnp.float32)
        excess_Q += jnp.sum(wide_QxP if softcap is None else wide_QxP - ds_QxP, axis=1)
        x_QxP = u_QxP - largest_Q[:, None] if softcap is None else x_QxP  # by one figure a row less: ds sum to zero
        drow_scale_Q += jnp.sum(ds_QxP * jnp.clip(x_QxP, pallas.LOWEST, -pallas.LOWEST), axis=1)
      return dq_QxK + product(rounded_QxP, k_PxK, precision), excess_Q, drow_scale_Q

    zeros_Q = jnp.zeros((Q,), jnp.float32)
    sums = jnp.zeros((Q, K_), jnp.float32), zeros_Q, zeros_Q
    dq_QxK, excess_Q, drow_scale_Q = over_keys(step, sums, i, Q, P, S_ // P, left, right)
    if exact:
      drow_scale_Q = jnp.sum(dq_QxK * q_QxK, axis=1)
    else:
      several_Q = log_sum_Q != 0
      dq_QxK = jnp.where(several_Q[:, None], dq_QxK - excess_Q[:, None] * middle_ref[...][None], 0.0)
      drow_scale_Q = jnp.where(several_Q, drow_scale_Q if softcap is not None else drow_scale_Q * factor_Q, 0.0)
    dq_ref[...] = (dq_QxK * row_scale_Q[:, None]).astype(dq_ref.dtype)
    drow_scale_ref[...] = drow_scale_Q

  def dkdv_kernel(*refs):
    Q, P = dkdv_tile.Q, dkdv_tile.P
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref), (*rows, dk_ref, dv_ref) = split(refs)
    j = pl.program_id(0)
    k_PxK, v_PxK = k_ref[...], v_ref[...]
    first = 0 if right is None else jax.lax.div(jnp.maximum(j * P - right, 0), Q)
    end = T_ // Q if left is None else jnp.minimum(jax.lax.div(j * P + P - 1 + left, Q) + 1, T_ // Q)
    count = jnp.maximum(end - first, 0)

    def step(n, sums):
      # All query heads of this key head, one after the other.
      h, i = jax.lax.div(n, count), first + jax.lax.rem(n, count)
      here = pl.ds(i * Q, Q)
      q_QxK, dout_QxK = q_ref[here, h, :], dout_ref[here, h, :]
      row_scale_Q = row_scale_ref[h, here]
      largest_Q, log_sum_Q, delta_Q, *dentropy_Q = (ref[h, here] for ref in rows)
      scale_Q = row_scale_Q if exact else jnp.where(log_sum_Q == 0, 0.0, row_scale_Q)
      seen_PxQ = seen_of(i * Q, j * P, (P, Q), 1, left, right, keep_ref, slice(None))
      factor_Q, gain_Q = factor_and_gain(row_scale_Q, softcap)
      u_PxQ = unscaled(scores(k_PxK, q_QxK, precision), factor_Q[None], softcap)
      # These products are those of the rows' kernel, but each of float32 is three, in another order.
      near = jnp.abs(largest_Q)[None] * _NEAR if exact else None
      p_PxQ, z_PxQ = weights(u_PxQ, gain_Q[None], largest_Q[None], log_sum_Q[None], seen_PxQ, near)
      ds_PxQ = scores(v_PxK, dout_QxK, precision) - delta_Q[None]
      if dentropy_Q:
        ds_PxQ -= dentropy_Q[0][None] * z_PxQ
      ds_PxQ = through_cap(p_PxQ * ds_PxQ, u_PxQ, softcap) * scale_Q[None]
      dk_PxK, dv_PxK = sums
      dv_PxK += product(p_PxQ.astype(dout_QxK.dtype), dout_QxK, precision)
      dk_PxK += product(ds_PxQ.astype(q_QxK.dtype), q_QxK, precision)
      return dk_PxK, dv_PxK

    zeros = jnp.zeros((P, K_), jnp.float32)
    dk_PxK, dv_PxK = jax.lax.fori_loop(0, count * R, step, (zeros, zeros))
    dk_ref[...] = dk_PxK.astype(dk_ref.dtype)
    dv_ref[...] = dv_PxK.astype(dv_ref.dtype)

  def specs(of_queries, of_keys, row_scales, keeps):
    return [of_queries, of_keys, of_keys, of_queries, row_scales] + [keeps] * (keep is not None)

  prefix = "attention" if dentropy_BxHxT is None else "entropy_attention"
  queries = pl.BlockSpec((None, dq_tile.Q, None, K_), lambda i, b, h: (b, i, h, 0))
  rows = pl.BlockSpec((None, None, dq_tile.Q), lambda i, b, h: (b, h, i))
  statistic = ((B, H, T_), jnp.float32)
  by_queries = {
    "grid": (T_ // dq_tile.Q, B, H),
    "compiler_params": compiler_params(dq_tile),
    "interpret": interpret,
  }
  in_specs = specs(
    queries,
    pl.BlockSpec((None, S_, None, K_), lambda i, b, h: (b, 0, h // R, 0)),
    pl.BlockSpec((None, dq_tile.Q), lambda i, b, h: (h, i)),
    pl.BlockSpec((None, S_), lambda i, b, h: (b, 0)),
  )
  if exact:
    statistics = pallas.call(
      rows_kernel,
      [statistic] * 3,
      operands + dentropies,
      in_specs=in_specs + [rows] * len(dentropies),
      out_specs=[rows] * 3,
      name=f"{prefix}_rows",
      **by_queries,
    )
  else:
    delta_BxHxT = pallas.row_term(forward, dout_BxTxHxK, dentropy_BxHxT)
    statistics = [pad(x, (B, H, T_)) for x in (forward.unscaled_BxHxT, forward.log_sum_BxHxT * LOG2E, delta_BxHxT)]
  operands += [*statistics, *dentropies]
  n_rows = len(statistics) + len(dentropies)
  middle = [] if exact else [pad(pallas.middle(k_BxSxGxK, keep_BxS), (B, G, K_))]
  dq, drow_scale = pallas.call(
    dq_kernel,
    [(q.shape, q.dtype), statistic],
    operands + middle,
    in_specs=in_specs
    + [rows] * n_rows
    + [pl.BlockSpec((None, None, K_), lambda i, b, h: (b, h // R, 0))] * len(middle),
    out_specs=[queries, rows],
    name=f"{prefix}_dq",
    **by_queries,
  )

  keys = pl.BlockSpec((None, dkdv_tile.P, None, K_), lambda j, b, g: (b, j, g, 0))
  in_specs = specs(
    pl.BlockSpec((None, T_, R, K_), lambda j, b, g: (b, 0, g, 0)),
    keys,
    pl.BlockSpec((R, T_), lambda j, b, g: (g, 0)),
    pl.BlockSpec((None, dkdv_tile.P), lambda j, b, g: (b, j)),
  )
  dk, dv = pallas.call(
    dkdv_kernel,
    [(k.shape, k.dtype), (v.shape, v.dtype)],
    operands,
    grid=(S_ // dkdv_tile.P, B, G),
    in_specs=in_specs + [pl.BlockSpec((None, R, T_), lambda j, b, g: (b, g, 0))] * n_rows,
    out_specs=[keys, keys],
    compiler_params=compiler_params(dkdv_tile),
    interpret=interpret,
    name=f"{prefix}_dkdv",
  )
  return dq[:, :T, :, :K], dk[:, :S, :, :K], dv[:, :S, :, :K], drow_scale[..., :T]
