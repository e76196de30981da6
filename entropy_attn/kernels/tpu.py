"""Attention with entropy as Pallas kernels for TPUs.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; Q query rows and P keys of a tile.

Tiles of logits lie transposed, [P, Q]: what belongs to a query (running maximum, sums, scale, entropy) is then a row
along the lanes, stored densely as [B, H, 1, T], and a sum over keys adds whole registers. The sums are those of the
GPU kernel, in natural logarithms.
"""

import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from entropy_attn.kernels import Forward

_MASKED = -1e20  # finite: its weight is exactly 0, and 0 times it too
_LEAST_MAX = -5e19  # above _MASKED, so that a row without keys weighs nothing
_LANES = 128
_TILE = 512  # rows and keys of a tile: a few of float32, 1 MiB each, fit the vector memory beside the operands
_WIDEST = {"bfloat16": 512, "float32": 384}  # the head width whose tiles still fit it (v4 … v6e, benchmarks/aot.py)


def unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK) -> str | None:
  """Why these inputs are not for this kernel; None if they are."""
  dtypes = {x.dtype.name for x in (q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)}
  if len(dtypes) > 1 or not dtypes <= {"float32", "bfloat16"}:
    return f"operands of {', '.join(sorted(dtypes))}"
  if v_BxSxGxK.shape[-1] != k_BxSxGxK.shape[-1]:
    return f"values of width {v_BxSxGxK.shape[-1]} with keys of width {k_BxSxGxK.shape[-1]}"
  widest = _WIDEST[k_BxSxGxK.dtype.name]
  if k_BxSxGxK.shape[-1] > widest:
    return f"{k_BxSxGxK.dtype} heads of width {k_BxSxGxK.shape[-1]}, more than {widest}"
  return None


def forward(q, k, v, row_scale_HxT, keep_BxS, *, window=None, softcap=None, with_rest=False, **options):
  assert window is None and softcap is None
  out, entropy, lse = _forward(q, k, v, row_scale_HxT, keep_BxS, **options)
  rest = jnp.zeros_like(out) if with_rest and out.dtype != jnp.float32 else None
  return Forward(out, entropy, lse, jnp.zeros_like(lse), rest)


def _forward(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep_BxS, *, causal, with_entropy=True, interpret=False):
  """Attention with logits row_scale_i q_i·k_j.

  Args:
    q_BxTxHxK, k_BxSxGxK, v_BxSxGxK: float32 or bfloat16, alike.
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
  Q, P, T_, S_ = _tiling(T, k_BxSxGxK.shape[1])
  keep = _keep(keep_BxS, k_BxSxGxK.shape, S_, causal, T)

  def kernel(q_ref, k_ref, v_t_ref, row_scale_ref, *refs):
    keep_ref, refs = (refs[0], refs[1:]) if keep is not None else (None, refs)
    out_t_ref, lse_ref, *entropy_ref, sum_ref, m_ref, l_ref, r_ref = refs
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)
      m_ref[...] = jnp.full_like(m_ref, _LEAST_MAX)
      l_ref[...] = jnp.zeros_like(l_ref)
      r_ref[...] = jnp.zeros_like(r_ref)

    @pl.when(_reached(i, j, Q, P, causal))
    def _():
      s_PxQ = _masked(_nt(k_ref[...], q_ref[...]) * row_scale_ref[...], i, j, keep_ref, causal)
      m = m_ref[...]
      grown = jnp.maximum(m, jnp.max(s_PxQ, axis=0, keepdims=True))
      shrink = jnp.exp(m - grown)
      shifted_PxQ = s_PxQ - grown
      p_PxQ = jnp.exp(shifted_PxQ)
      if with_entropy:
        r_ref[...] = shrink * (r_ref[...] + (m - grown) * l_ref[...]) + jnp.sum(p_PxQ * shifted_PxQ, 0, keepdims=True)
      l_ref[...] = shrink * l_ref[...] + jnp.sum(p_PxQ, axis=0, keepdims=True)
      sum_ref[...] = sum_ref[...] * shrink + _nn(v_t_ref[...], p_PxQ.astype(v_t_ref.dtype))
      m_ref[...] = grown

    @pl.when(j == S_ // P - 1)
    def _():
      l = l_ref[...]
      some = jnp.where(l == 0, 1.0, l)
      out_t_ref[...] = (sum_ref[...] / some).astype(out_t_ref.dtype)
      lse_ref[...] = jnp.where(l == 0, 0.0, m_ref[...] + jnp.log(some))
      if with_entropy:
        entropy_ref[0][...] = jnp.log(some) - r_ref[...] / some

  reached = lambda i, j: jnp.minimum(j, (i * Q + Q - 1) // P) if causal else j  # nothing is fetched for other tiles
  rows = pl.BlockSpec((None, None, 1, Q), lambda b, h, i, j: (b, h, 0, i))
  in_specs = [
    pl.BlockSpec((None, None, Q, K), lambda b, h, i, j: (b, h, i, 0)),
    pl.BlockSpec((None, None, P, K), lambda b, h, i, j: (b, h // R, reached(i, j), 0)),
    pl.BlockSpec((None, None, K, P), lambda b, h, i, j: (b, h // R, 0, reached(i, j))),
    pl.BlockSpec((None, 1, Q), lambda b, h, i, j: (h, 0, i)),
  ]
  if keep is not None:
    in_specs.append(pl.BlockSpec((None, 1, P), lambda b, h, i, j: (b, 0, reached(i, j))))
  statistic = jax.ShapeDtypeStruct((B, H, 1, T_), jnp.float32)
  out_t, lse, *entropy = pl.pallas_call(
    kernel,
    grid=(B, H, T_ // Q, S_ // P),
    in_specs=in_specs,
    out_specs=[pl.BlockSpec((None, None, K, Q), lambda b, h, i, j: (b, h, 0, i)), rows] + [rows] * with_entropy,
    out_shape=[jax.ShapeDtypeStruct((B, H, K, T_), v_BxSxGxK.dtype), statistic] + [statistic] * with_entropy,
    scratch_shapes=[pltpu.VMEM((K, Q), jnp.float32)] + [pltpu.VMEM((1, Q), jnp.float32)] * 3,
    compiler_params=_COMPILER_PARAMS,
    interpret=interpret,
    name="entropy_attention_forward" if with_entropy else "attention_forward",
  )(
    _rows(q_BxTxHxK, T_),
    _rows(k_BxSxGxK, S_),
    _columns(v_BxSxGxK, S_),
    _padded(row_scale_HxT[:, None], T_),
    *_present(keep),
  )
  out_BxTxHxK = jnp.moveaxis(out_t, 3, 1)[:, :T]
  return out_BxTxHxK, entropy[0][:, :, 0, :T] if with_entropy else None, lse[:, :, 0, :T]


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
  Q, P, T_, S_ = _tiling(T, S)
  keep = _keep(keep_BxS, k_BxSxGxK.shape, S_, causal, T)
  statistics = [_padded(x[:, :, None], T_) for x in _present(lse_BxHxT, delta_BxHxT, dentropy_BxHxT)]
  row_scale = _padded(row_scale_HxT[:, None], T_)
  q, k, v, dout = _rows(q_BxTxHxK, T_), _rows(k_BxSxGxK, S_), _rows(v_BxSxGxK, S_), _rows(dout_BxTxHxK, T_)

  def gradients(i, j, q_ref, k_ref, v_ref, dout_ref, row_scale_ref, keep_ref, rows):
    """p and ds of a tile, [P, Q] float32."""
    lse, delta, *dentropy = (ref[...] for ref in rows)
    z_PxQ = _masked(_nt(k_ref[...], q_ref[...]) * row_scale_ref[...] - lse, i, j, keep_ref, causal)
    p_PxQ = jnp.exp(z_PxQ)
    ds_PxQ = _nt(v_ref[...], dout_ref[...]) - delta
    if dentropy:
      ds_PxQ -= dentropy[0] * z_PxQ
    return p_PxQ, p_PxQ * ds_PxQ

  def split(refs, outputs_and_scratch):
    inputs, rest = refs[:-outputs_and_scratch], refs[-outputs_and_scratch:]
    tensors, rows = inputs[: -len(statistics)], inputs[-len(statistics) :]
    return (*tensors, *([None] if keep is None else []), rows), rest

  def dq_kernel(q_t_ref, k_t_ref, *refs):
    operands, (dq_t_ref, drow_scale_ref, sum_ref) = split(refs, 3)
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(_reached(i, j, Q, P, causal))
    def _():
      _, ds_PxQ = gradients(i, j, *operands)
      sum_ref[...] += _nn(k_t_ref[...], ds_PxQ.astype(k_t_ref.dtype))

    @pl.when(j == S_ // P - 1)
    def _():
      row_scale_ref = operands[4]
      dq_t_ref[...] = (sum_ref[...] * row_scale_ref[...]).astype(dq_t_ref.dtype)
      drow_scale_ref[...] = jnp.sum(sum_ref[...] * q_t_ref[...].astype(jnp.float32), axis=0, keepdims=True)

  def dkdv_kernel(*refs):
    operands, (dk_ref, dv_ref, dk_sum_ref, dv_sum_ref) = split(refs, 4)
    j, n = pl.program_id(2), pl.program_id(3)
    i = n % (T_ // Q)

    @pl.when(n == 0)
    def _():
      dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
      dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    @pl.when(_reached(i, j, Q, P, causal))
    def _():
      q_ref, _, _, dout_ref, row_scale_ref, *_ = operands
      p_PxQ, ds_PxQ = gradients(i, j, *operands)
      dv_sum_ref[...] += _nn(p_PxQ.astype(dout_ref.dtype), dout_ref[...])
      dk_sum_ref[...] += _nn((ds_PxQ * row_scale_ref[...]).astype(q_ref.dtype), q_ref[...])

    @pl.when(n == R * (T_ // Q) - 1)
    def _():
      dk_ref[...] = dk_sum_ref[...].astype(dk_ref.dtype)
      dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)

  def specs(of_query, of_key):
    """Block specs of q, k, v, dout, row_scale, keep and the statistics; of_query and of_key give (b, head, block)."""

    def spec(shape, place, order):
      return pl.BlockSpec(shape, lambda *grid: order(*place(*grid)))

    queries = spec((None, None, Q, K), of_query, lambda b, h, i: (b, h, i, 0))
    keys = spec((None, None, P, K), of_key, lambda b, g, j: (b, g, j, 0))
    row_scales = spec((None, 1, Q), of_query, lambda b, h, i: (h, 0, i))
    keeps = spec((None, 1, P), of_key, lambda b, g, j: (b, 0, j))
    rows = spec((None, None, 1, Q), of_query, lambda b, h, i: (b, h, 0, i))
    return [queries, keys, keys, queries, row_scales] + [keeps] * (keep is not None) + [rows] * len(statistics)

  operands = (q, k, v, dout, row_scale, *_present(keep), *statistics)
  reached = lambda i, j: jnp.minimum(j, (i * Q + Q - 1) // P) if causal else j  # nothing is fetched for other tiles
  query_columns = pl.BlockSpec((None, None, K, Q), lambda b, h, i, j: (b, h, 0, i))
  key_columns = pl.BlockSpec((None, None, K, P), lambda b, h, i, j: (b, h // R, 0, reached(i, j)))
  dq_t, drow_scale = pl.pallas_call(
    dq_kernel,
    grid=(B, H, T_ // Q, S_ // P),
    in_specs=[
      query_columns,
      key_columns,
      *specs(lambda b, h, i, j: (b, h, i), lambda b, h, i, j: (b, h // R, reached(i, j))),
    ],
    out_specs=[query_columns, pl.BlockSpec((None, None, 1, Q), lambda b, h, i, j: (b, h, 0, i))],
    out_shape=[jax.ShapeDtypeStruct((B, H, K, T_), q.dtype), jax.ShapeDtypeStruct((B, H, 1, T_), jnp.float32)],
    scratch_shapes=[pltpu.VMEM((K, Q), jnp.float32)],
    compiler_params=_COMPILER_PARAMS,
    interpret=interpret,
    name="entropy_attention_dq" if dentropy_BxHxT is not None else "attention_dq",
  )(_columns(q_BxTxHxK, T_), _columns(k_BxSxGxK, S_), *operands)

  blocks = T_ // Q
  first = lambda j: jnp.minimum(j * P // Q, blocks - 1) if causal else 0
  query_block = lambda b, g, j, n: (b, g * R + n // blocks, jnp.maximum(n % blocks, first(j)))
  keys = pl.BlockSpec((None, None, P, K), lambda b, g, j, n: (b, g, j, 0))
  dk, dv = pl.pallas_call(
    dkdv_kernel,
    grid=(B, G, S_ // P, R * blocks),
    in_specs=specs(query_block, lambda b, g, j, n: (b, g, j)),
    out_specs=[keys, keys],
    out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
    scratch_shapes=[pltpu.VMEM((P, K), jnp.float32)] * 2,
    compiler_params=_COMPILER_PARAMS,
    interpret=interpret,
    name="entropy_attention_dkdv" if dentropy_BxHxT is not None else "attention_dkdv",
  )(*operands)
  dq_BxTxHxK = jnp.moveaxis(dq_t, 3, 1)[:, :T]
  return dq_BxTxHxK, jnp.swapaxes(dk, 1, 2)[:, :S], jnp.swapaxes(dv, 1, 2)[:, :S], drow_scale[:, :, 0, :T]


_COMPILER_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))


def _tiling(T: int, S: int) -> tuple[int, int, int, int]:
  """Q, P, and T and S in whole tiles."""

  def tile(n):
    least = math.ceil(n / _LANES) * _LANES
    sizes = [size for size in (_TILE, _TILE // 2, _LANES) if math.ceil(n / size) * size <= 1.15 * least]
    return sizes[0], math.ceil(n / sizes[0]) * sizes[0]

  (Q, T_), (P, S_) = tile(T), tile(S)
  return Q, P, T_, S_


def _reached(i, j, Q, P, causal):
  return j * P <= i * Q + Q - 1 if causal else True


def _masked(s_PxQ, i, j, keep_ref, causal):
  P, Q = s_PxQ.shape
  if causal:
    key_PxQ = j * P + jax.lax.broadcasted_iota(jnp.int32, (P, Q), 0)
    row_PxQ = i * Q + jax.lax.broadcasted_iota(jnp.int32, (P, Q), 1)
    s_PxQ = jnp.where(key_PxQ <= row_PxQ, s_PxQ, _MASKED)
  if keep_ref is not None:
    s_PxQ = jnp.where(keep_ref[...].T != 0, s_PxQ, _MASKED)
  return s_PxQ


def _keep(keep_BxS, keys_shape, S_, causal, T):
  """int32 [B, 1, S] in whole tiles; None if nothing but causality masks."""
  B, S = keys_shape[:2]
  if keep_BxS is None:
    if S_ == S or (causal and T <= S):
      return None
    keep_BxS = jnp.ones((B, S), bool)
  return _padded(keep_BxS.astype(jnp.int32)[:, None], S_)


def _nt(a_PxK, b_QxK):
  """a bᵀ, float32."""
  return _dot(a_PxK, b_QxK, ((1,), (1,)))


def _nn(a, b):
  """a b, float32."""
  return _dot(a, b, ((1,), (0,)))


def _dot(a, b, contracting):
  # One pass of bfloat16 is not float32's product; bfloat16's own is, whatever jax_default_matmul_precision asks.
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  return jax.lax.dot_general(a, b, (contracting, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _rows(x_BxTxHxK, whole):
  """[B, H, T, K], T padded."""
  return jnp.swapaxes(jnp.pad(x_BxTxHxK, [(0, 0), (0, whole - x_BxTxHxK.shape[1]), (0, 0), (0, 0)]), 1, 2)


def _columns(x_BxTxHxK, whole):
  """[B, H, K, T], T padded."""
  return jnp.moveaxis(jnp.pad(x_BxTxHxK, [(0, 0), (0, whole - x_BxTxHxK.shape[1]), (0, 0), (0, 0)]), 1, 3)


def _padded(x, whole):
  """The last axis padded."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, whole - x.shape[-1])])


def _present(*arrays):
  return [x for x in arrays if x is not None]
