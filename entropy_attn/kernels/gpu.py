"""Attention with entropy as Pallas kernels for NVIDIA GPUs, compiled by Triton (Ampere and later).

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; Q query rows and P keys of a tile.

The forward pass walks over the keys once, with three running sums a row: with m the largest logit so far,
l = sum exp(s − m), r = sum exp(s − m)(s − m) and the output's. When m grows to m', with a = exp(m − m'):
r ← a (r + (m − m') l), l ← a l. Then entropy = log l − r / l. Logits are held in base 2.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from entropy_attn.kernels import Forward

_LOG2E = math.log2(math.e)
_LN2 = math.log(2)
_MASKED = -1e20  # finite: its weight is exactly 0, and 0 times it too
_LEAST_MAX = -5e19  # above _MASKED, so that a row without keys weighs nothing


def unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK) -> str | None:
  """Why these inputs are not for this kernel; None if they are."""
  dtypes = {x.dtype.name for x in (q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)}
  if len(dtypes) > 1 or not dtypes <= {"float32", "bfloat16", "float16"}:
    return f"operands of {', '.join(sorted(dtypes))}"
  if v_BxSxGxK.shape[-1] != k_BxSxGxK.shape[-1]:
    return f"values of width {v_BxSxGxK.shape[-1]} with keys of width {k_BxSxGxK.shape[-1]}"
  if tiles(k_BxSxGxK.dtype, k_BxSxGxK.shape[-1]) is None:
    return f"{k_BxSxGxK.dtype} heads of width {k_BxSxGxK.shape[-1]}"
  return None


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
  """The tile of each kernel, forward, dq and dkdv; None if the width is too large."""
  size = jnp.dtype(dtype).itemsize
  return next((_TILES[size, widest] for widest in (64, 128, 256) if K <= widest and (size, widest) in _TILES), None)


def forward(q, k, v, row_scale_HxT, keep_BxS, *, window=None, softcap=None, with_rest=False, **options):
  assert window is None and softcap is None
  out, entropy, lse = _forward(q, k, v, row_scale_HxT, keep_BxS, **options)
  rest = jnp.zeros_like(out) if with_rest and out.dtype != jnp.float32 else None
  return Forward(out, entropy, lse, jnp.zeros_like(lse), rest)


def _forward(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, *, causal, with_entropy=True, interpret=False):
  """Attention with logits row_scale_i q_i·k_j.

  Args:
    q_BxTxHxK, k_BxSxGxK, v_BxSxGxK: float32, bfloat16 or float16, alike.
    row_scale_HxT: float32.
    keep_BxS: boolean, False where a key may not be attended; None: all may.
    causal: query i attends to keys j ≤ i.
    with_entropy: False leaves the entropy out: the yardstick of the benchmarks.
    interpret: runs on any platform, slowly.

  Returns:
    out [B, T, H, K] in the dtype of v, entropy [B, H, T] in nats or None, log-sum-exp of the logits [B, H, T].
  """
  B, T, H, K = q_BxTxHxK.shape
  R = H // k_BxSxGxK.shape[2]
  tile = tiles(q_BxTxHxK.dtype, K)["forward"]
  Q, P = tile.Q, tile.P
  precision = _precision(q_BxTxHxK.dtype, interpret)
  q, k, v, row_scale, keep = _padded(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, Q, P, causal)
  T_, S_, K_ = q.shape[1], k.shape[1], q.shape[3]

  def kernel(q_ref, k_ref, v_ref, row_scale_ref, *refs):
    keep_ref, (out_ref, lse_ref, *entropy_ref) = (refs[0], refs[1:]) if keep is not None else (None, refs)
    i = pl.program_id(0)
    q_QxK = q_ref[...]
    scale_Q = row_scale_ref[...] * _LOG2E

    def step(j, carry, diagonal):
      out_QxK, m, l, r = carry
      keys = pl.ds(j * P, P)
      s_QxP = _scores(q_QxK, k_ref[keys, :], precision) * scale_Q[:, None]
      s_QxP = _masked(s_QxP, i * Q, j * P, keep_ref, keys, diagonal)
      grown = jnp.maximum(m, jnp.max(s_QxP, axis=1))
      shrink = jnp.exp2(m - grown)
      p_QxP = jnp.exp2(s_QxP - grown[:, None])
      if with_entropy:
        r = shrink * (r + (m - grown) * l) + jnp.sum(p_QxP * (s_QxP - grown[:, None]), axis=1)
      l = shrink * l + jnp.sum(p_QxP, axis=1)
      v_PxK = v_ref[keys, :]
      out_QxK = out_QxK * shrink[:, None] + _product(p_QxP.astype(v_PxK.dtype), v_PxK, precision)
      return out_QxK, grown, l, r

    zeros_Q = jnp.zeros((Q,), jnp.float32)
    carry = jnp.zeros((Q, K_), jnp.float32), zeros_Q + _LEAST_MAX, zeros_Q, zeros_Q
    out_QxK, m, l, r = _over_keys(step, carry, i, Q, P, S_ // P, causal)
    some = jnp.where(l == 0, 1.0, l)
    out_ref[...] = (out_QxK / some[:, None]).astype(out_ref.dtype)
    lse_ref[...] = jnp.where(l == 0, 0.0, m * _LN2 + jnp.log(some))
    if with_entropy:
      entropy_ref[0][...] = jnp.log(some) - _LN2 * r / some

  rows = pl.BlockSpec((None, None, Q), lambda i, b, h: (b, h, i))
  queries = pl.BlockSpec((None, Q, None, K_), lambda i, b, h: (b, i, h, 0))
  keys = pl.BlockSpec((None, S_, None, K_), lambda i, b, h: (b, 0, h // R, 0))
  in_specs = [queries, keys, keys, pl.BlockSpec((None, Q), lambda i, b, h: (h, i))]
  if keep is not None:
    in_specs.append(pl.BlockSpec((None, S_), lambda i, b, h: (b, 0)))
  statistic = jax.ShapeDtypeStruct((B, H, T_), jnp.float32)
  out, lse, *entropy = pl.pallas_call(
    kernel,
    grid=(T_ // Q, B, H),
    in_specs=in_specs,
    out_specs=[queries, rows] + [rows] * with_entropy,
    out_shape=[jax.ShapeDtypeStruct((B, T_, H, K_), v.dtype), statistic] + [statistic] * with_entropy,
    compiler_params=_compiler_params(tile),
    interpret=interpret,
    name="entropy_attention_forward" if with_entropy else "attention_forward",
  )(*_present(q, k, v, row_scale, keep))
  return out[:, :T, :, :K], entropy[0][..., :T] if with_entropy else None, lse[..., :T]


def backward(q, k, v, row_scale_HxT, keep_BxS, forward, dout, dentropy, *, window=None, softcap=None, **options):
  assert window is None and softcap is None
  lse = forward.largest_BxHxT + forward.log_sum_BxHxT
  dout_out = jnp.sum(dout.astype(lse.dtype) * forward.out_BxTxHxK.astype(lse.dtype), axis=-1)
  delta = jnp.swapaxes(dout_out, 1, 2) + (0 if dentropy is None else dentropy * forward.entropy_BxHxT)
  return _backward(q, k, v, row_scale_HxT, keep_BxS, lse, dout, delta, dentropy, **options)


def _backward(
  q_BxTxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  row_scale_HxT,
  keep_BxS,
  lse_BxHxT,
  dout_BxTxHxK,
  delta_BxHxT,
  dentropy_BxHxT,
  *,
  causal,
  interpret=False,
):
  """Gradients of `forward`: with z = s − lse, p = exp z and dP = dout Vᵀ, ds = p (dP − delta − dentropy z).

  Args:
    lse_BxHxT: from `forward`.
    delta_BxHxT: dout_i·out_i + dentropy_i entropy_i.
    dentropy_BxHxT: cotangent of the entropy; None: zero, and not read.

  Returns:
    dq, dk, dv as q, k, v, and drow_scale [B, H, T].
  """
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxGxK.shape[1:3]
  R = H // G
  tile = tiles(q_BxTxHxK.dtype, K)
  precision = _precision(q_BxTxHxK.dtype, interpret)
  dq_tile, dkdv_tile = tile["dq"], tile["dkdv"]
  whole = math.lcm(dq_tile.Q, dkdv_tile.Q), math.lcm(dq_tile.P, dkdv_tile.P)
  q, k, v, row_scale, keep = _padded(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, *whole, causal)
  T_, S_, K_ = q.shape[1], k.shape[1], q.shape[3]
  dout = _pad(dout_BxTxHxK, (B, T_, H, K_))
  # In base 2: dentropy z = (dentropy ln 2) (z / ln 2).
  statistics = [lse_BxHxT * _LOG2E, delta_BxHxT] + ([] if dentropy_BxHxT is None else [dentropy_BxHxT * _LN2])
  statistics = [_pad(x, (B, H, T_)) for x in statistics]
  operands = _present(q, k, v, dout, row_scale, keep) + statistics
  n_inputs = len(operands)

  def split(refs):
    q_ref, k_ref, v_ref, dout_ref, row_scale_ref, *rest = refs[:n_inputs]
    keep_ref = rest.pop(0) if keep is not None else None
    return (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref, rest), refs[n_inputs:]

  def dq_kernel(*refs):
    Q, P = dq_tile.Q, dq_tile.P
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref, rows), (dq_ref, drow_scale_ref) = split(refs)
    i = pl.program_id(0)
    q_QxK, dout_QxK = q_ref[...], dout_ref[...]
    row_scale_Q = row_scale_ref[...]
    lse_Q, delta_Q, *dentropy_Q = (ref[...] for ref in rows)

    def step(j, dq_QxK, diagonal):
      keys = pl.ds(j * P, P)
      k_PxK = k_ref[keys, :]
      z_QxP = _scores(q_QxK, k_PxK, precision) * (row_scale_Q * _LOG2E)[:, None] - lse_Q[:, None]
      z_QxP = _masked(z_QxP, i * Q, j * P, keep_ref, keys, diagonal)
      ds_QxP = _scores(dout_QxK, v_ref[keys, :], precision) - delta_Q[:, None]
      if dentropy_Q:
        ds_QxP -= dentropy_Q[0][:, None] * z_QxP
      ds_QxP = jnp.exp2(z_QxP) * ds_QxP
      return dq_QxK + _product(ds_QxP.astype(k_PxK.dtype), k_PxK, precision)

    dq_QxK = _over_keys(step, jnp.zeros((Q, K_), jnp.float32), i, Q, P, S_ // P, causal)
    dq_ref[...] = (dq_QxK * row_scale_Q[:, None]).astype(dq_ref.dtype)
    drow_scale_ref[...] = jnp.sum(dq_QxK * q_QxK.astype(jnp.float32), axis=1)

  def dkdv_kernel(*refs):
    Q, P = dkdv_tile.Q, dkdv_tile.P
    (q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref, rows), (dk_ref, dv_ref) = split(refs)
    j = pl.program_id(0)
    k_PxK, v_PxK = k_ref[...], v_ref[...]
    first = jax.lax.div(j * P, Q) if causal else 0
    count = jnp.maximum(T_ // Q - first, 0)

    def step(n, sums):
      # All query heads of this key head, one after the other.
      h, i = jax.lax.div(n, count), first + jax.lax.rem(n, count)
      here = pl.ds(i * Q, Q)
      q_QxK, dout_QxK = q_ref[here, h, :], dout_ref[here, h, :]
      row_scale_Q = row_scale_ref[h, here]
      lse_Q, delta_Q, *dentropy_Q = (ref[h, here] for ref in rows)
      z_PxQ = _scores(k_PxK, q_QxK, precision) * (row_scale_Q * _LOG2E)[None] - lse_Q[None]
      if causal:
        z_PxQ = jnp.where(i * Q + jnp.arange(Q)[None] >= j * P + jnp.arange(P)[:, None], z_PxQ, _MASKED)
      if keep_ref is not None:
        z_PxQ = jnp.where(keep_ref[...][:, None] != 0, z_PxQ, _MASKED)
      p_PxQ = jnp.exp2(z_PxQ)
      ds_PxQ = _scores(v_PxK, dout_QxK, precision) - delta_Q[None]
      if dentropy_Q:
        ds_PxQ -= dentropy_Q[0][None] * z_PxQ
      ds_PxQ = p_PxQ * ds_PxQ * row_scale_Q[None]
      dk_PxK, dv_PxK = sums
      dv_PxK += _product(p_PxQ.astype(dout_QxK.dtype), dout_QxK, precision)
      dk_PxK += _product(ds_PxQ.astype(q_QxK.dtype), q_QxK, precision)
      return dk_PxK, dv_PxK

    zeros = jnp.zeros((P, K_), jnp.float32)
    dk_PxK, dv_PxK = jax.lax.fori_loop(0, count * R, step, (zeros, zeros))
    dk_ref[...] = dk_PxK.astype(dk_ref.dtype)
    dv_ref[...] = dv_PxK.astype(dv_ref.dtype)

  def specs(of_queries, of_keys, row_scales, keeps, rows):
    return (
      [of_queries, of_keys, of_keys, of_queries, row_scales] + [keeps] * (keep is not None) + [rows] * len(statistics)
    )

  queries = pl.BlockSpec((None, dq_tile.Q, None, K_), lambda i, b, h: (b, i, h, 0))
  rows = pl.BlockSpec((None, None, dq_tile.Q), lambda i, b, h: (b, h, i))
  dq, drow_scale = pl.pallas_call(
    dq_kernel,
    grid=(T_ // dq_tile.Q, B, H),
    in_specs=specs(
      queries,
      pl.BlockSpec((None, S_, None, K_), lambda i, b, h: (b, 0, h // R, 0)),
      pl.BlockSpec((None, dq_tile.Q), lambda i, b, h: (h, i)),
      pl.BlockSpec((None, S_), lambda i, b, h: (b, 0)),
      rows,
    ),
    out_specs=[queries, rows],
    out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, H, T_), jnp.float32)],
    compiler_params=_compiler_params(dq_tile),
    interpret=interpret,
    name="entropy_attention_dq" if dentropy_BxHxT is not None else "attention_dq",
  )(*operands)

  keys = pl.BlockSpec((None, dkdv_tile.P, None, K_), lambda j, b, g: (b, j, g, 0))
  dk, dv = pl.pallas_call(
    dkdv_kernel,
    grid=(S_ // dkdv_tile.P, B, G),
    in_specs=specs(
      pl.BlockSpec((None, T_, R, K_), lambda j, b, g: (b, 0, g, 0)),
      keys,
      pl.BlockSpec((R, T_), lambda j, b, g: (g, 0)),
      pl.BlockSpec((None, dkdv_tile.P), lambda j, b, g: (b, j)),
      pl.BlockSpec((None, R, T_), lambda j, b, g: (b, g, 0)),
    ),
    out_specs=[keys, keys],
    out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
    compiler_params=_compiler_params(dkdv_tile),
    interpret=interpret,
    name="entropy_attention_dkdv" if dentropy_BxHxT is not None else "attention_dkdv",
  )(*operands)
  return dq[:, :T, :, :K], dk[:, :S, :, :K], dv[:, :S, :, :K], drow_scale[..., :T]


def _over_keys(step, carry, i, Q, P, blocks, causal):
  """Runs step(j, carry, diagonal) over the key blocks that rows i Q … may attend to; only the last ones need a mask."""
  if not causal:
    return jax.lax.fori_loop(0, blocks, functools.partial(step, diagonal=False), carry)
  whole = jnp.minimum(jax.lax.div(i * Q, P), blocks)
  end = jnp.minimum(jax.lax.div((i + 1) * Q + P - 1, P), blocks)
  carry = jax.lax.fori_loop(0, whole, functools.partial(step, diagonal=False), carry)
  return jax.lax.fori_loop(whole, end, functools.partial(step, diagonal=True), carry)


def _masked(s_QxP, first_row, first_key, keep_ref, keys, diagonal):
  Q, P = s_QxP.shape
  if diagonal:
    s_QxP = jnp.where(first_row + jnp.arange(Q)[:, None] >= first_key + jnp.arange(P)[None], s_QxP, _MASKED)
  if keep_ref is not None:
    s_QxP = jnp.where(keep_ref[keys][None] != 0, s_QxP, _MASKED)
  return s_QxP


def _scores(a_QxK, b_PxK, precision):
  return _product(a_QxK, b_PxK.T, precision)


def _product(a, b, precision):
  return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _precision(dtype, interpret):
  """The precision of a product. Float32 takes three on tensor cores: tf32 alone would lose half its digits."""
  if dtype != jnp.float32:
    return jax.lax.Precision.DEFAULT  # not None: jax_default_matmul_precision is not for these
  return jax.lax.Precision.HIGHEST if interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def _padded(q, k, v, row_scale_HxT, keep_BxS, Q, P, causal):
  """The operands with whole tiles, and a width that is a power of two; copies only where they are not."""
  B, T, H, K = q.shape
  S, G = k.shape[1:3]
  T_, S_, K_ = math.ceil(T / Q) * Q, math.ceil(S / P) * P, max(16, pl.next_power_of_2(K))
  if keep_BxS is None and S_ > S and not (causal and T <= S):
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
