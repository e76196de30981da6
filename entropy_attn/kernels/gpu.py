"""Attention with entropy as Pallas kernels for NVIDIA GPUs, compiled by Triton (Ampere and later).

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; Q query rows and P keys of a tile.

The forward pass walks over the keys once, with three running sums a row: with m the largest logit so far,
l = sum exp(s − m), r = sum exp(s − m)(s − m) and the output's. When m grows to m', with a = exp(m − m'):
r ← a (r + (m − m') l), l ← a l. Then entropy = log l − r / l.

A logit is s = gain · u with a gain of the row, positive, and u = ± q·k (or the hyperbolic tangent under a soft cap).
Differences are taken of u, where they are exact for what is near, and only then scaled: no rounding of a large logit
comes into p, whether the compiler fuses multiplications with subtractions or not. They are held in base 2.

In the gradient ds = p (e − sum p e) with e = dP − dentropy log p, the sum is made from `out` and the entropy for 16-bit
operands, and for float32 by a kernel of its own from the very p and dP of the next: then it is the softmax's derivative
to the last digits, and zero for a one-hot row.

JAX deprecated Pallas' Triton backend in 0.11, which warns and still runs; in its place come Mosaic GPU
(jax.experimental.pallas.mosaic_gpu: Hopper and later alone) or Triton itself through jax_triton.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from entropy_attn.kernels import Forward, pallas

_LOG2E = math.log2(math.e)
_LN2 = math.log(2)
_LEAST = -200.0  # of a logit less the largest, in base 2: its weight is exactly 0, and 0 times it too
_LOWEST = float(jnp.finfo(jnp.float32).min)  # what the running maximum begins with
_NEAR = 2.0**-21  # products in another order differ by such parts of their size


def unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK) -> str | None:
  """Why these inputs are not for this kernel; None if they are."""
  reason = pallas.unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, {"float32", "bfloat16", "float16"})
  if reason is None and tiles(k_BxSxGxK.dtype, k_BxSxGxK.shape[-1]) is None:
    return f"{k_BxSxGxK.dtype} heads of width {k_BxSxGxK.shape[-1]}"
  return reason


@dataclasses.dataclass(frozen=True)
class Tile:
  """Query rows and keys of a tile, the warps that share it, and the stages of the loop's pipeline."""

  Q: int
  P: int
  warps: int
  stages: int


# By bytes of the dtype and head width up to: chosen by what the compiler tells for an H100 (benchmarks/aot.py). The
# largest without spilled registers, on tensor cores, in shared memory that smaller chips have too (99 KiB).
_TILES = {
  (2, 64): {"forward": Tile(128, 64, 8, 2), "dq": Tile(128, 64, 8, 2), "dkdv": Tile(64, 128, 8, 2)},
  (2, 128): {"forward": Tile(128, 64, 8, 2), "dq": Tile(64, 64, 8, 2), "dkdv": Tile(32, 64, 8, 2)},
  (2, 256): {"forward": Tile(64, 32, 8, 2), "dq": Tile(32, 64, 8, 1), "dkdv": Tile(32, 32, 8, 1)},
  (4, 64): {"forward": Tile(128, 32, 8, 1), "dq": Tile(64, 32, 8, 1), "dkdv": Tile(32, 64, 8, 1)},
  (4, 128): {"forward": Tile(16, 32, 4, 1), "dq": Tile(16, 32, 8, 1), "dkdv": Tile(32, 16, 4, 1)},
}


def tiles(dtype, K: int) -> dict[str, Tile] | None:
  """The tile of each kernel, forward, dq (and of its row terms) and dkdv; None if the width is too large."""
  size = jnp.dtype(dtype).itemsize
  return next((_TILES[size, widest] for widest in (64, 128, 256) if K <= widest and (size, widest) in _TILES), None)


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
  precision = _precision(q_BxTxHxK.dtype, interpret)
  left, right = pallas.band(causal, window, T, S)
  q, k, v, row_scale, keep = _padded(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, Q, P, right)
  T_, S_, K_ = q.shape[1], k.shape[1], q.shape[3]
  with_rest = with_rest and v.dtype != jnp.float32

  def kernel(q_ref, k_ref, v_ref, row_scale_ref, *refs):
    keep_ref, refs = (refs[0], refs[1:]) if keep is not None else (None, refs)
    out_ref, largest_ref, log_sum_ref, *more = refs
    i = pl.program_id(0)
    q_QxK = q_ref[...]
    factor_Q, gain_Q = _factor_and_gain(row_scale_ref[...], softcap)

    def step(j, carry, edge):
      out_QxK, m, l, r = carry
      keys = pl.ds(j * P, P)
      u_QxP = _unscaled(_scores(q_QxK, k_ref[keys, :], precision), factor_Q[:, None], softcap)
      seen_QxP = _seen(i * Q, j * P, (Q, P), 0, left if edge else None, right if edge else None, keep_ref, keys)
      grown = jnp.maximum(m, jnp.max(_where(seen_QxP, u_QxP, -jnp.inf), axis=1))
      z_QxP = _where(seen_QxP, jnp.maximum((u_QxP - grown[:, None]) * gain_Q[:, None], _LEAST), _LEAST)
      p_QxP = jnp.exp2(z_QxP)
      lower = jnp.maximum((m - grown) * gain_Q, _LEAST)
      shrink = jnp.exp2(lower)
      if with_entropy:
        r = shrink * (r + lower * l) + jnp.sum(p_QxP * z_QxP, axis=1)
      l = shrink * l + jnp.sum(p_QxP, axis=1)
      v_PxK = v_ref[keys, :]
      out_QxK = out_QxK * shrink[:, None] + _product(p_QxP.astype(v_PxK.dtype), v_PxK, precision)
      return out_QxK, grown, l, r

    zeros_Q = jnp.zeros((Q,), jnp.float32)
    carry = jnp.zeros((Q, K_), jnp.float32), zeros_Q + _LOWEST, zeros_Q, zeros_Q
    out_QxK, m, l, r = _over_keys(step, carry, i, Q, P, S_ // P, left, right)
    some = jnp.where(l == 0, 1.0, l)
    out_QxK /= some[:, None]
    out_ref[...] = out_QxK.astype(out_ref.dtype)
    largest_ref[...] = jnp.where(l == 0, 0.0, m)
    log_sum_ref[...] = jnp.log(some)
    if with_entropy:
      more[0][...] = jnp.log(some) - _LN2 * r / some
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
    _present(q, k, v, row_scale, keep),
    grid=(T_ // Q, B, H),
    in_specs=in_specs,
    out_specs=[queries, rows, rows] + [rows] * with_entropy + [queries] * with_rest,
    compiler_params=_compiler_params(tile),
    interpret=interpret,
    name="entropy_attention_forward" if with_entropy else "attention_forward",
  )
  rest = results.pop()[:, :T, :, :K] if with_rest else None
  unscaled, log_sum, *entropy = (x[..., :T] for x in results)
  gain_HxT = jnp.abs(row_scale_HxT) if softcap is None else softcap
  return Forward(out[:, :T, :, :K], entropy[0] if with_entropy else None, gain_HxT * unscaled, log_sum, rest, unscaled)


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
  tile = tiles(q_BxTxHxK.dtype, K)
  precision = _precision(q_BxTxHxK.dtype, interpret)
  dq_tile, dkdv_tile = tile["dq"], tile["dkdv"]
  left, right = pallas.band(causal, window, T, S)
  whole = math.lcm(dq_tile.Q, dkdv_tile.Q), math.lcm(dq_tile.P, dkdv_tile.P)
  q, k, v, row_scale, keep = _padded(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, *whole, right)
  T_, S_, K_ = q.shape[1], k.shape[1], q.shape[3]
  dout = _pad(dout_BxTxHxK, (B, T_, H, K_))
  operands = _present(q, k, v, dout, row_scale, keep)
  n_operands = len(operands)
  # Row terms from p and dP themselves. Without them, rows of one key alone (log_sum 0) have no gradient but of v: their
  # ds is rounding, which a scale that makes rows so sharp would multiply.
  exact = q.dtype == jnp.float32
  # In base 2: dentropy z = (dentropy ln 2) (z / ln 2).
  dentropies = [] if dentropy_BxHxT is None else [_pad(dentropy_BxHxT * _LN2, (B, H, T_))]

  def split(refs):
    """The references of q, k, v, dout, row_scale, keep or None; those of the rows' statistics and of the results."""
    tensors = list(refs[:n_operands])
    return tensors + [None] * (keep is None), refs[n_operands:]

  def weights(x, factor, gain, largest, log_sum, seen, near=0.0):
    """p, log2 p, and u of products x; what is as near to the largest as `near` is the largest."""
    u = _unscaled(x, factor, softcap)
    below = u - largest
    below = jnp.minimum(below, 0.0) if isinstance(near, float) else jnp.where(below > -near, 0.0, below)
    z = _where(seen, jnp.maximum(below * gain - log_sum, _LEAST), _LEAST)
    return jnp.exp2(z), z, u

  def rows_kernel(*refs):
    """The row terms that the next kernels read, from the same products."""
    Q, P = dq_tile.Q, dq_tile.P
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref), refs = split(refs)
    *dentropy_ref, largest_ref, log_sum_ref, delta_ref = refs
    i = pl.program_id(0)
    q_QxK, dout_QxK = q_ref[...], dout_ref[...]
    factor_Q, gain_Q = _factor_and_gain(row_scale_ref[...], softcap)
    dentropy_Q = [ref[...] for ref in dentropy_ref]

    def step(j, carry, edge):
      m, l, total = carry
      keys = pl.ds(j * P, P)
      u_QxP = _unscaled(_scores(q_QxK, k_ref[keys, :], precision), factor_Q[:, None], softcap)
      seen_QxP = _seen(i * Q, j * P, (Q, P), 0, left if edge else None, right if edge else None, keep_ref, keys)
      grown = jnp.maximum(m, jnp.max(_where(seen_QxP, u_QxP, -jnp.inf), axis=1))
      z_QxP = _where(seen_QxP, jnp.maximum((u_QxP - grown[:, None]) * gain_Q[:, None], _LEAST), _LEAST)
      p_QxP = jnp.exp2(z_QxP)
      e_QxP = _scores(dout_QxK, v_ref[keys, :], precision)
      lower = jnp.maximum((m - grown) * gain_Q, _LEAST)
      shrink = jnp.exp2(lower)
      if dentropy_Q:
        e_QxP -= dentropy_Q[0][:, None] * z_QxP
        total -= dentropy_Q[0] * lower * l
      return grown, shrink * l + jnp.sum(p_QxP, axis=1), shrink * total + jnp.sum(p_QxP * e_QxP, axis=1)

    zeros_Q = jnp.zeros((Q,), jnp.float32)
    m, l, total = _over_keys(step, (zeros_Q + _LOWEST, zeros_Q, zeros_Q), i, Q, P, S_ // P, left, right)
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
    factor_Q, gain_Q = _factor_and_gain(row_scale_Q, softcap)
    largest_Q, log_sum_Q, delta_Q, *dentropy_Q = (ref[...] for ref in rows)

    def step(j, dq_QxK, edge):
      keys = pl.ds(j * P, P)
      k_PxK = k_ref[keys, :]
      seen_QxP = _seen(i * Q, j * P, (Q, P), 0, left if edge else None, right if edge else None, keep_ref, keys)
      of_rows = (x[:, None] for x in (factor_Q, gain_Q, largest_Q, log_sum_Q))
      p_QxP, z_QxP, u_QxP = weights(_scores(q_QxK, k_PxK, precision), *of_rows, seen_QxP)
      ds_QxP = _scores(dout_QxK, v_ref[keys, :], precision) - delta_Q[:, None]
      if dentropy_Q:
        ds_QxP -= dentropy_Q[0][:, None] * z_QxP
      ds_QxP = _through_cap(p_QxP * ds_QxP, u_QxP, softcap)
      return dq_QxK + _product(ds_QxP.astype(k_PxK.dtype), k_PxK, precision)

    dq_QxK = _over_keys(step, jnp.zeros((Q, K_), jnp.float32), i, Q, P, S_ // P, left, right)
    if not exact:
      dq_QxK = jnp.where(log_sum_Q[:, None] == 0, 0.0, dq_QxK)
    dq_ref[...] = (dq_QxK * row_scale_Q[:, None]).astype(dq_ref.dtype)
    drow_scale_ref[...] = jnp.sum(dq_QxK * q_QxK.astype(jnp.float32), axis=1)

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
      seen_PxQ = _seen(i * Q, j * P, (P, Q), 1, left, right, keep_ref, slice(None))
      of_rows = (x[None] for x in (*_factor_and_gain(row_scale_Q, softcap), largest_Q, log_sum_Q))
      # Their products are those of the rows' kernel, but of three in another order.
      near = jnp.abs(largest_Q)[None] * _NEAR if exact else 0.0
      p_PxQ, z_PxQ, u_PxQ = weights(_scores(k_PxK, q_QxK, precision), *of_rows, seen_PxQ, near)
      ds_PxQ = _scores(v_PxK, dout_QxK, precision) - delta_Q[None]
      if dentropy_Q:
        ds_PxQ -= dentropy_Q[0][None] * z_PxQ
      ds_PxQ = _through_cap(p_PxQ * ds_PxQ, u_PxQ, softcap) * scale_Q[None]
      dk_PxK, dv_PxK = sums
      dv_PxK += _product(p_PxQ.astype(dout_QxK.dtype), dout_QxK, precision)
      dk_PxK += _product(ds_PxQ.astype(q_QxK.dtype), q_QxK, precision)
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
    "compiler_params": _compiler_params(dq_tile),
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
    statistics = [_pad(x, (B, H, T_)) for x in (forward.unscaled_BxHxT, forward.log_sum_BxHxT * _LOG2E, delta_BxHxT)]
  operands += [*statistics, *dentropies]
  n_rows = len(statistics) + len(dentropies)
  dq, drow_scale = pallas.call(
    dq_kernel,
    [(q.shape, q.dtype), statistic],
    operands,
    in_specs=in_specs + [rows] * n_rows,
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
    compiler_params=_compiler_params(dkdv_tile),
    interpret=interpret,
    name=f"{prefix}_dkdv",
  )
  return dq[:, :T, :, :K], dk[:, :S, :, :K], dv[:, :S, :, :K], drow_scale[..., :T]


def _over_keys(step, carry, i, Q, P, blocks, left, right):
  """Runs step(j, carry, edge) over the key blocks that rows i Q … may see; only those at an edge need a mask."""
  first = inner = 0
  last = end = blocks
  if left is not None:
    first = jnp.minimum(jax.lax.div(jnp.maximum(i * Q - left, 0), P), blocks)
    inner = jax.lax.div(jnp.maximum(i * Q + Q - 1 - left, 0) + P - 1, P)
  if right is not None:
    end = jnp.minimum(jax.lax.div(i * Q + Q + right + P - 1, P), blocks)
    last = jnp.minimum(jax.lax.div(i * Q + right + 1, P), blocks)
  inner, last = (inner, last) if left is None else (jnp.minimum(inner, end), jnp.maximum(last, jnp.minimum(inner, end)))
  if left is not None:
    carry = jax.lax.fori_loop(first, inner, functools.partial(step, edge=True), carry)
  carry = jax.lax.fori_loop(inner, last, functools.partial(step, edge=False), carry)
  if right is None:
    return carry
  return jax.lax.fori_loop(last, end, functools.partial(step, edge=True), carry)


def _factor_and_gain(row_scale_Q, softcap):
  """What makes products x the u of logits gain u, positive gain: u = factor x, or its hyperbolic tangent; in base 2."""
  if softcap is None:
    return jnp.where(row_scale_Q < 0, -1.0, 1.0), jnp.abs(row_scale_Q) * _LOG2E
  return row_scale_Q / softcap, jnp.full_like(row_scale_Q, softcap * _LOG2E)


def _unscaled(x, factor, softcap):
  return x * factor if softcap is None else jnp.tanh(x * factor)


def _through_cap(ds, u, softcap):
  return ds if softcap is None else ds * (1.0 - u * u)


def _seen(first_row, first_key, shape, rows_axis, left, right, keep_ref, keys):
  """Which rows and keys of a tile see each other, boolean; None: all."""
  row = first_row + jax.lax.broadcasted_iota(jnp.int32, shape, rows_axis)
  key = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - rows_axis)
  seen = pallas.in_band(row, key, left, right)
  if keep_ref is None:
    return seen
  keep = jnp.expand_dims(keep_ref[keys] != 0, rows_axis)
  return jnp.broadcast_to(keep, shape) if seen is None else seen & keep


def _where(seen, x, otherwise):
  return x if seen is None else jnp.where(seen, x, otherwise)


def _scores(a_QxK, b_PxK, precision):
  return _product(a_QxK, b_PxK.T, precision)


def _product(a, b, precision):
  return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _precision(dtype, interpret):
  """The precision of a product. Float32 takes three on tensor cores: tf32 alone would lose half its digits."""
  if dtype != jnp.float32:
    return jax.lax.Precision.DEFAULT  # not None: jax_default_matmul_precision is not for these
  return jax.lax.Precision.HIGHEST if interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def _padded(q, k, v, row_scale_HxT, keep_BxS, Q, P, right):
  """The operands with whole tiles, and a width that is a power of two; copies only where they are not."""
  B, T, H, K = q.shape
  S, G = k.shape[1:3]
  T_, S_, K_ = math.ceil(T / Q) * Q, math.ceil(S / P) * P, max(16, pl.next_power_of_2(K))
  if keep_BxS is None and pallas.needs_keep(right, T, S, S_):
    keep_BxS = jnp.ones((B, S), bool)
  keep = None if keep_BxS is None else _pad(keep_BxS.astype(jnp.int32), (B, S_))
  k, v = (_pad(x, (B, S_, G, K_)) for x in (k, v))
  return _pad(q, (B, T_, H, K_)), k, v, _pad(row_scale_HxT, (H, T_)), keep


def _pad(x, shape):
  return jnp.pad(x, [(0, whole - n) for n, whole in zip(x.shape, shape, strict=True)])


def _present(*arrays):
  return [x for x in arrays if x is not None]


def _compiler_params(tile):
  return plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
