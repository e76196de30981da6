"""Attention with entropy in plain JAX: a block of query rows against all their keys at a time, memory linear in T.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; C chunks of N pairs of a sequence and a key head; M = R Q query rows of a block, W its keys.
"""

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn import parts
from entropy_attn.kernels import Forward
from entropy_attn.kernels.plan import Plan

_LEAST = -1000.0  # exp of it is 0, and 0 times it too


def forward(
  q_BxTxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  row_scale_HxT,
  keep,
  bias=None,
  *,
  causal: bool,
  window: tuple[int, int] | None = None,
  softcap: float | None = None,
  with_entropy: bool = True,
  with_rest: bool = False,
) -> Forward:
  """Attention with logits row_scale_i q_i·k_j; each block's softmax is whole, so that nothing is rescaled.

  Args:
    q_BxTxHxK, k_BxSxGxK, v_BxSxGxK: one floating dtype; the values may have a width of their own.
    row_scale_HxT: float32 (float64 for float64 inputs).
    keep: boolean [B or 1, H or 1, T or 1, S], True where a key may be attended; None: all.
    bias: [B or 1, H or 1, T or 1, S] in the dtype of row_scale, added to the logits; None: nothing.
    causal: query i attends to keys j ≤ i.
    window: (left, right), query i attends to keys i − left ≤ j ≤ i + right; None: all. Other keys cost nothing.
    softcap: c, logits s become c tanh(s / c) before the bias; None: they stay.
    with_entropy: False leaves the entropy out.
    with_rest: `rest` too, which `backward` here does not need.

  Returns:
    `Forward`; `largest` of a row without keys is −inf.
  """
  plan = Plan.of(q_BxTxHxK, k_BxSxGxK, causal, window)

  def chunk(operands):
    pairs_N, q_NxRxTxK, k_NxSxK, v_NxSxV = operands
    tables = [x if x is None else plan.of_pairs(x, pairs_N) for x in (keep, bias)]
    spans = []
    for span in plan.spans:

      def block(i, span=span):
        start = plan.start(span, i)
        k, v = (_keys(x, start, span.width) for x in (k_NxSxK, v_NxSxV))
        s_NxMxW = _dot("NMK,NWK->NMW", plan.merged(plan.block(q_NxRxTxK, i)), k)
        s_NxMxW, _ = _logits(plan, s_NxMxW, softcap, *tables, i, start)
        m, shifted, p, l = _weights(s_NxMxW)
        out = _dot("NMW,NWV->NMV", p.astype(v.dtype), v) / l
        found = {"out": out.astype(v.dtype), "largest": m[..., 0], "log_sum": jnp.log(l)[..., 0]}
        if with_entropy:
          found["entropy"] = (jnp.log(l) - jnp.sum(p * shifted, axis=-1, keepdims=True) / l)[..., 0]
        if with_rest and out.dtype != v.dtype:
          found["rest"] = (out - found["out"]).astype(v.dtype)
        return found

      spans.append(jax.tree.map(plan.join, jax.lax.map(block, span.first + jnp.arange(span.count))))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *spans)

  q = plan.queries(_scaled(q_BxTxHxK, row_scale_HxT))
  found = jax.lax.map(chunk, (plan.pairs(), q, plan.keys(k_BxSxGxK), plan.keys(v_BxSxGxK)))
  place = lambda name, to: to(found[name]) if name in found else None
  return Forward(
    plan.to_BxTxHxK(found["out"]),
    place("entropy", plan.to_BxHxT),
    plan.to_BxHxT(found["largest"]),
    plan.to_BxHxT(found["log_sum"]),
    place("rest", plan.to_BxTxHxK),
  )


def backward(
  q_BxTxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  row_scale_HxT,
  keep,
  forward: Forward | None,
  dout_BxTxHxK,
  dentropy_BxHxT,
  bias=None,
  *,
  causal: bool,
  window: tuple[int, int] | None = None,
  softcap: float | None = None,
):
  """Gradients of `forward`, of which nothing is needed: a block makes its own softmax and its derivative whole.

  With z = log p, dP = dout Vᵀ and u = dP − dentropy z: ds = p (u − sum_j p u), exactly 0 where a row is one-hot.

  Args:
    dentropy_BxHxT: cotangent of the entropy; None: zero.

  Returns:
    dq, dk, dv as q, k, v; drow_scale [B, H, T]; with a bias also dbias as that.
  """
  del forward
  plan = Plan.of(q_BxTxHxK, k_BxSxGxK, causal, window)
  zeros = lambda shape: parts.alike(jnp.zeros(shape, row_scale_HxT.dtype), q_BxTxHxK)[0]

  def chunk(dbias, operands):
    pairs_N, queries, dentropy, k_NxSxK, v_NxSxV = operands
    tables = [x if x is None else plan.of_pairs(x, pairs_N) for x in (keep, bias)]
    # The sums of keys and values lie transposed: CPUs' products are then three times as fast.
    sums = [zeros((plan.N, x.shape[2], plan.S)) for x in (k_NxSxK, v_NxSxV)]
    if bias is not None:
      sums.append(zeros(tables[1].shape))
    dq_parts = []
    for span in plan.spans:

      def block(sums, i, span=span):
        start = plan.start(span, i)
        k, v = (_keys(x, start, span.width) for x in (k_NxSxK, v_NxSxV))
        q, dout = (plan.merged(plan.block(x, i)) for x in queries)
        s_NxMxW, slope = _logits(plan, _dot("NMK,NWK->NMW", q, k), softcap, *tables, i, start)
        _, shifted, p, l = _weights(s_NxMxW)
        p = p / l
        u = _dot("NMV,NWV->NMW", dout, v)
        if dentropy is not None:
          u = u - plan.merged(plan.block(dentropy, i))[..., None] * (shifted - jnp.log(l))
        ds = p * (u - jnp.sum(p * u, axis=-1, keepdims=True))
        added = [None, _dot("NMW,NMV->NVW", p.astype(v.dtype), dout)]
        if bias is not None:
          added.append(_dbias(plan, ds, sums[2].shape))
        ds = ds.astype(k.dtype) if slope is None else (ds * slope).astype(k.dtype)
        added[0] = _dot("NMW,NMK->NKW", ds, q)
        sums = [_added(plan, *pair, i, start) for pair in zip(sums, added, strict=True)]
        return sums, _dot("NMW,NWK->NMK", ds, k)

      sums, dq = jax.lax.scan(block, sums, span.first + jnp.arange(span.count))
      dq_parts.append(plan.join(dq))
    if bias is not None:
      dbias = dbias.at[plan.indices(pairs_N[: len(sums[2])], bias.shape[0], bias.shape[1])].add(sums.pop())
    return dbias, (jnp.concatenate(dq_parts, axis=2), *(jnp.swapaxes(x, 1, 2) for x in sums))

  dbias = None
  if bias is not None:
    b, h, t, S = bias.shape
    heads = (1, 1) if h == 1 else (plan.G, plan.R)
    dbias = zeros((b, *heads, t if t == 1 else plan.blocks * plan.Q, S))
  queries = tuple(map(plan.queries, (_scaled(q_BxTxHxK, row_scale_HxT), dout_BxTxHxK)))
  dentropy = None if dentropy_BxHxT is None else plan.rows(dentropy_BxHxT)
  dbias, (dq, dk, dv) = jax.lax.scan(
    chunk, dbias, (plan.pairs(), queries, dentropy, plan.keys(k_BxSxGxK), plan.keys(v_BxSxGxK))
  )
  dq_BxTxHxK = plan.to_BxTxHxK(dq)  # of the scaled queries
  drow_scale_BxHxT = jnp.sum(dq_BxTxHxK * q_BxTxHxK.astype(dq_BxTxHxK.dtype), axis=-1).swapaxes(1, 2)
  gradients = (
    _scaled(dq_BxTxHxK, row_scale_HxT).astype(q_BxTxHxK.dtype),
    plan.to_BxSxGxK(dk).astype(k_BxSxGxK.dtype),
    plan.to_BxSxGxK(dv).astype(v_BxSxGxK.dtype),
    drow_scale_BxHxT,
  )
  if bias is None:
    return gradients
  return *gradients, dbias.reshape(b, h, -1, S)[:, :, :t]


def _logits(plan, s_NxMxW, softcap, keep, bias, i, start):
  """Logits of products, −inf where a key may not be seen, and what the soft cap multiplies their gradient by."""
  slope, width = None, s_NxMxW.shape[2]
  if softcap is not None:
    t = jnp.tanh(s_NxMxW / softcap)
    s_NxMxW, slope = softcap * t, 1 - t * t
  if bias is not None:
    s_NxMxW += plan.tile(bias, i, start, width)
  seen = plan.near(i, start, width)
  if keep is not None:
    keep = plan.tile(keep, i, start, width)
    seen = keep if seen is None else keep & seen
  return s_NxMxW if seen is None else jnp.where(seen, s_NxMxW, -jnp.inf), slope


def _weights(s_NxMxW):
  """The largest logit m of each row, s − m without infinities, its exp, and their sum; NaN and +inf logits give NaN."""
  m = jnp.max(s_NxMxW, axis=-1, keepdims=True)
  shifted = jnp.maximum(s_NxMxW - jnp.where(jnp.isneginf(m), 0, m), _LEAST)
  p = jnp.exp(shifted)
  l = jnp.sum(p, axis=-1, keepdims=True)
  return m, shifted, p, jnp.where(l == 0, 1, l)


def _keys(x_NxSxK, start, width):
  if isinstance(start, int):
    return x_NxSxK[:, start : start + width]
  return jax.lax.dynamic_slice_in_dim(x_NxSxK, start, width, axis=1)


def _dbias(plan, ds_NxMxW, shape):
  """ds summed over the axes of N, R, Q that the bias lacks, [N or 1, R or 1, Q or 1, W]."""
  N, _, W = ds_NxMxW.shape
  ds = ds_NxMxW.reshape(N, plan.R, plan.Q, W)
  lacking = tuple(axis for axis, (whole, n) in enumerate(zip((N, plan.R, plan.T), shape, strict=False)) if n < whole)
  return jnp.sum(ds, axis=lacking, keepdims=True)


def _added(plan, sum_, x, i, start):
  """The sum with what block i adds in its place: [N, K, W] in [N, K, S], or of a bias."""
  if x.ndim == 3:
    places = (0, 0, start)
  else:
    places = (0, 0, i * plan.Q if sum_.shape[2] != 1 else 0, start)
  before = jax.lax.dynamic_slice(sum_, places, x.shape)
  return jax.lax.dynamic_update_slice(sum_, before + x, places)


def _scaled(x_BxTxHxK, row_scale_HxT):
  """Queries times their scale, in float32 (or float64): the logits are then a product alone."""
  return x_BxTxHxK.astype(row_scale_HxT.dtype) * row_scale_HxT.T[None, :, :, None]


def _dot(subscripts, a, b):
  """A product accumulated in float32, or float64 for float64 operands."""
  wide = np.result_type(a.dtype, b.dtype, np.float32)
  if (
    a.dtype != b.dtype or jax.default_backend() == "cpu"
  ):  # whose compiler has no batched product of bfloat16 into float32
    a, b = a.astype(wide), b.astype(wide)
  return jnp.einsum(subscripts, a, b, preferred_element_type=wide)
