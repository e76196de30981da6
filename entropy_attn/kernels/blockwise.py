"""Attention with entropy in plain JAX: a block of query rows against all their keys at a time, memory linear in T.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width, V that of values; N pairs of a sequence and a key head at a time; M = R Q query rows of a block, W
its keys.
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
  B, T, H, _ = q_BxTxHxK.shape
  wide, dtype, V = row_scale_HxT.dtype, v_BxSxGxK.dtype, v_BxSxGxK.shape[3]
  q, keep, bias = _whole(plan, _scaled(q_BxTxHxK, row_scale_HxT), keep, bias)
  k, v = map(_operand, (k_BxSxGxK, v_BxSxGxK))
  zeros = lambda dtype, *shape: parts.alike(jnp.zeros(shape, dtype), q_BxTxHxK)[0]
  padded = plan.blocks * plan.Q
  found = {"out": zeros(dtype, B, padded, H, V)}
  if with_rest and dtype != wide:
    found["rest"] = zeros(dtype, B, padded, H, V)
  found |= {name: zeros(wide, B, H, padded) for name in ("largest", "log_sum", "entropy")[: 2 + with_entropy]}

  def block(found, at, i, start, k_NxWxK, v_NxWxV):
    s_NxMxW = _dot("NMK,NWK->NMW", plan.rows(q, at, i), k_NxWxK)
    s_NxMxW, _ = _logits(plan, s_NxMxW, softcap, keep, bias, at, i, start)
    m, shifted, p, l = _weights(s_NxMxW)
    out = _dot("NMW,NWV->NMV", p.astype(v.dtype), v_NxWxV) / l
    new = {"out": out.astype(dtype), "largest": m, "log_sum": jnp.log(l)}
    if with_entropy:
      new["entropy"] = jnp.log(l) - jnp.sum(p * shifted, axis=-1, keepdims=True) / l
    if "rest" in found:
      new["rest"] = (out - new["out"]).astype(dtype)
    put = lambda name: plan.put_rows if found[name].ndim == 4 else plan.put_figures
    return {name: put(name)(found[name], x, at, i) for name, x in new.items()}

  found = plan.over_blocks(block, found, k, v)
  found = {name: x[:, :T] if x.ndim == 4 else x[:, :, :T] for name, x in found.items()}
  return Forward(found["out"], found.get("entropy"), found["largest"], found["log_sum"], found.get("rest"))


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

  With z the logits less their largest, dP = dout Vᵀ and u = dP − dentropy z: ds = p (u − sum_j p u), whatever is added
  to all z of a row, and exactly 0 where it is one-hot.

  Args:
    dentropy_BxHxT: cotangent of the entropy; None: zero.

  Returns:
    dq, dk, dv as q, k, v; drow_scale [B, H, T]; with a bias also dbias as that.
  """
  del forward
  plan = Plan.of(q_BxTxHxK, k_BxSxGxK, causal, window)
  B, T, H, K = q_BxTxHxK.shape
  S, G, V = v_BxSxGxK.shape[1:]
  zeros = lambda *shape: parts.alike(jnp.zeros(shape, row_scale_HxT.dtype), q_BxTxHxK)[0]
  padded = plan.blocks * plan.Q
  q, keep, bias = _whole(plan, _scaled(q_BxTxHxK, row_scale_HxT), keep, bias)
  k, v = map(_operand, (k_BxSxGxK, v_BxSxGxK))
  dout = plan.whole(_operand(dout_BxTxHxK), 1)
  dentropy = None if dentropy_BxHxT is None else plan.whole(dentropy_BxHxT, 2)
  # The sums of keys and values lie transposed: CPUs' products are then three times as fast.
  sums = {"q": zeros(B, padded, H, K), "k": zeros(B, G, K, S), "v": zeros(B, G, V, S)}
  if bias is not None:
    sums["bias"] = zeros(*bias.shape)

  def block(sums, at, i, start, k_NxWxK, v_NxWxV):
    q_NxMxK, dout_NxMxV = (plan.rows(x, at, i) for x in (q, dout))
    s_NxMxW = _dot("NMK,NWK->NMW", q_NxMxK, k_NxWxK)
    s_NxMxW, slope = _logits(plan, s_NxMxW, softcap, keep, bias, at, i, start)
    _, shifted, p, l = _weights(s_NxMxW)
    inv = 1 / l
    u = _dot("NMV,NWV->NMW", dout_NxMxV, v_NxWxV)
    if dentropy is not None:
      u = u - plan.figures(dentropy, at, i) * shifted
    ds = p * (u - jnp.sum(p * u, axis=-1, keepdims=True) * inv)  # as p, too large by l: rows are divided, not all
    new = {}
    if bias is not None:
      new["bias"] = plan.add_tile(sums["bias"], ds * inv, at, i, start)
    ds = (ds if slope is None else ds * slope).astype(k.dtype)
    dk = over_rows(plan, q_NxMxK * inv, ds)
    dv = over_rows(plan, dout_NxMxV * inv, p.astype(v.dtype))
    new["q"] = plan.put_rows(sums["q"], _dot("NMW,NWK->NMK", ds, k_NxWxK) * inv, at, i)
    new |= {name: plan.add_keys(sums[name], x, at, start) for name, x in (("k", dk), ("v", dv))}
    return new

  sums = plan.over_blocks(block, sums, k, v)
  dq_BxTxHxK = sums["q"][:, :T]  # of the scaled queries
  drow_scale_BxHxT = jnp.sum(dq_BxTxHxK * q_BxTxHxK.astype(dq_BxTxHxK.dtype), axis=-1).swapaxes(1, 2)
  dq = _scaled(dq_BxTxHxK, row_scale_HxT).astype(q_BxTxHxK.dtype)
  dk, dv = (jnp.moveaxis(sums[name], 3, 1).astype(x.dtype) for name, x in (("k", k_BxSxGxK), ("v", v_BxSxGxK)))
  if bias is None:
    return dq, dk, dv, drow_scale_BxHxT
  return dq, dk, dv, drow_scale_BxHxT, sums["bias"] if bias.shape[2] == 1 else sums["bias"][:, :, :T]


def _logits(plan, s_NxMxW, softcap, keep, bias, at, i, start):
  """Logits of products, −inf where a key may not be seen, and what the soft cap multiplies their gradient by."""
  slope, width = None, s_NxMxW.shape[2]
  if softcap is not None:
    t = jnp.tanh(s_NxMxW / softcap)
    s_NxMxW, slope = softcap * t, 1 - t * t
  if bias is not None:
    s_NxMxW += plan.tile(bias, at, i, start, width)
  seen = plan.near(i, start, width)
  if keep is not None:
    keep = plan.tile(keep, at, i, start, width)
    seen = keep if seen is None else keep & seen
  return s_NxMxW if seen is None else jnp.where(seen, s_NxMxW, -jnp.inf), slope


def _weights(s_NxMxW):
  """The largest logit m of each row, s − m without infinities, its exp, and their sum; NaN and +inf logits give NaN."""
  m = jnp.max(s_NxMxW, axis=-1, keepdims=True)
  shifted = jnp.maximum(s_NxMxW - jnp.where(jnp.isneginf(m), 0, m), _LEAST)
  p = jnp.exp(shifted)
  l = jnp.sum(p, axis=-1, keepdims=True)
  return m, shifted, p, jnp.where(l == 0, 1, l)


def over_rows(plan, x_NxMxK, weights_NxMxW):
  """Sums over the rows of a block, [N, K, W], as the plan would have them made."""
  if not plan.turned:
    return _dot("NMK,NMW->NKW", x_NxMxK, weights_NxMxW)
  x_NxKxM = jax.lax.optimization_barrier(jnp.swapaxes(x_NxMxK, 1, 2))  # or the copy would be taken away
  return _dot("NKM,NMW->NKW", x_NxKxM, weights_NxMxW)


def _whole(plan, q_BxTxHxK, *tables):
  """The queries, and a mask and a bias (or None), with T padded to whole blocks."""
  tables = (x if x is None or x.shape[2] == 1 else plan.whole(x, 2) for x in tables)
  return plan.whole(q_BxTxHxK, 1), *tables


def _scaled(x_BxTxHxK, row_scale_HxT):
  """Queries times their scale, in float32 (or float64): the logits are then a product alone."""
  return x_BxTxHxK.astype(row_scale_HxT.dtype) * row_scale_HxT.T[None, :, :, None]


def _operand(x):
  """Of products: on a CPU, whose compiler has no batched product of bfloat16 into float32, at least float32."""
  return x.astype(np.result_type(x.dtype, np.float32)) if jax.default_backend() == "cpu" else x


def _dot(subscripts, a, b):
  """A product accumulated in float32, or float64 for float64 operands."""
  wide = np.result_type(a.dtype, b.dtype, np.float32)
  if a.dtype != b.dtype:
    a, b = a.astype(wide), b.astype(wide)
  return jnp.einsum(subscripts, a, b, preferred_element_type=wide)
