"""Attention with entropy in plain JAX: a block of query rows against all their keys at a time, memory linear in T.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; C chunks of N pairs of a sequence and a key head; Q query rows of a block.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

_ROWS = 128  # query rows of a block
_SPANS = 8  # the blocks are cut into at most so many spans, each with its own range of keys: half the work if causal
# Logits that are worked on at once, measured on CPUs: few enough for the caches, but where a sequence is short enough
# for its chunks to cost more than they save. Elsewhere they should be many enough to fill the machine.
_LOGITS_CPU, _LOGITS_CPU_SHORT, _LOGITS_ELSEWHERE = 2**18, 2**20, 2**25
_SHORT = 128
_MASKED = -1e20  # finite: its weight is exactly 0, and 0 times it too
_LEAST_MAX = -5e19  # above _MASKED, so that a row without keys weighs nothing


def forward(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, mask, *, causal: bool, with_entropy: bool = True):
  """Attention with logits row_scale_i q_i·k_j; each block's softmax is whole, so that nothing is rescaled.

  Args:
    q_BxTxHxK, k_BxSxGxK, v_BxSxGxK: one floating dtype; the values may have a width of their own.
    row_scale_HxT: float32 (float64 for float64 inputs).
    mask: boolean [B or 1, H or 1, T or 1, S], True where a key may be attended; None: all.
    causal: query i attends to keys j ≤ i.
    with_entropy: False leaves the entropy out.

  Returns:
    out [B, T, H, K] in the dtype of v, entropy [B, H, T] in nats or None, log-sum-exp of the logits [B, H, T].
  """
  plan = _Plan.of(q_BxTxHxK, k_BxSxGxK, causal)

  def chunk(operands):
    pairs_N, q_NxRxTxK, k_NxSxK, v_NxSxK = operands
    spans = []
    for first, count, end in plan.spans:
      k, v = k_NxSxK[:, :end], v_NxSxK[:, :end]

      def block(i, k=k, v=v):
        s_NxMxS = _dot("NMK,NSK->NMS", plan.merged(plan.block(q_NxRxTxK, i)), k)
        s_NxMxS = jnp.where(plan.keep(mask, pairs_N, i, k.shape[1]), s_NxMxS, _MASKED)
        m = jnp.maximum(jnp.max(s_NxMxS, axis=-1, keepdims=True), _LEAST_MAX)
        shifted = s_NxMxS - m
        p = jnp.exp(shifted)
        l = jnp.sum(p, axis=-1, keepdims=True)
        l = jnp.where(l == 0, 1, l)
        out = (_dot("NMS,NSV->NMV", p.astype(v.dtype), v) / l).astype(v.dtype)
        lse = jnp.where(m == _LEAST_MAX, 0, m + jnp.log(l))[..., 0]
        if not with_entropy:
          return out, lse
        return out, lse, (jnp.log(l) - jnp.sum(p * shifted, axis=-1, keepdims=True) / l)[..., 0]

      spans.append(jax.tree.map(plan.join, jax.lax.map(block, first + jnp.arange(count))))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *spans)

  q = plan.queries(_scaled(q_BxTxHxK, row_scale_HxT))
  out, lse, *entropy = jax.lax.map(chunk, (plan.pairs(), q, plan.keys(k_BxSxGxK), plan.keys(v_BxSxGxK)))
  return plan.to_BxTxHxK(out), plan.to_BxHxT(entropy[0]) if with_entropy else None, plan.to_BxHxT(lse)


def backward(
  q_BxTxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  row_scale_HxT,
  mask,
  lse_BxHxT,
  dout_BxTxHxK,
  delta_BxHxT,
  dentropy_BxHxT,
  *,
  causal: bool,
):
  """Gradients of `forward`; all that it needs of the forward pass is the log-sum-exp.

  With z = s − lse, p = exp z and dP = dout Vᵀ: ds = p (dP − delta − dentropy z).

  Args:
    lse_BxHxT: from `forward`.
    delta_BxHxT: dout_i·out_i + dentropy_i entropy_i.
    dentropy_BxHxT: cotangent of the entropy; None: zero.

  Returns:
    dq, dk, dv as q, k, v, and drow_scale [B, H, T].
  """
  plan = _Plan.of(q_BxTxHxK, k_BxSxGxK, causal)

  # The logits lie transposed, keys before rows: so each of the five products is one of untransposed matrices.
  def chunk(operands):
    pairs_N, queries, rows, k_NxSxK, v_NxSxV = operands
    k_NxKxS = jnp.swapaxes(k_NxSxK, 1, 2)
    dk_NxSxK, dv_NxSxV = (jnp.zeros(x.shape, row_scale_HxT.dtype) for x in (k_NxSxK, v_NxSxV))
    spans = []
    for first, count, end in plan.spans:
      k, k_t, v = k_NxSxK[:, :end], k_NxKxS[..., :end], v_NxSxV[:, :end]

      def block(sums, i, k=k, k_t=k_t, v=v):
        q, dout = (plan.merged(plan.block(x, i)) for x in queries)
        lse, delta, *dentropy = (plan.merged(plan.block(x, i))[:, None] for x in rows)
        z = _dot("NSK,NMK->NSM", k, q) - lse
        z = jnp.where(jnp.swapaxes(plan.keep(mask, pairs_N, i, k.shape[1]), 1, 2), z, _MASKED)
        p = jnp.exp(z)
        ds = _dot("NSV,NMV->NSM", v, dout) - delta
        if dentropy:
          ds = ds - dentropy[0] * z
        ds = (p * ds).astype(k.dtype)
        dk, dv = sums
        dv = dv + _dot("NSM,NMV->NSV", p.astype(v.dtype), dout)
        dk = dk + _dot("NSM,NMK->NSK", ds, q)
        return (dk, dv), _dot("NKS,NSM->NKM", k_t, ds)

      sums, dq = jax.lax.scan(block, (dk_NxSxK[:, :end], dv_NxSxV[:, :end]), first + jnp.arange(count))
      dk_NxSxK, dv_NxSxV = dk_NxSxK.at[:, :end].set(sums[0]), dv_NxSxV.at[:, :end].set(sums[1])
      spans.append(plan.join(jnp.swapaxes(dq, 2, 3)))
    return jnp.concatenate(spans, axis=2), dk_NxSxK, dv_NxSxV

  rows = (lse_BxHxT, delta_BxHxT) + (() if dentropy_BxHxT is None else (dentropy_BxHxT,))
  queries = (_scaled(q_BxTxHxK, row_scale_HxT), dout_BxTxHxK)
  dq, dk, dv = jax.lax.map(
    chunk,
    (
      plan.pairs(),
      tuple(map(plan.queries, queries)),
      tuple(map(plan.rows, rows)),
      plan.keys(k_BxSxGxK),
      plan.keys(v_BxSxGxK),
    ),
  )
  dq_BxTxHxK = plan.to_BxTxHxK(dq)  # of the scaled queries
  drow_scale_BxHxT = jnp.sum(dq_BxTxHxK * q_BxTxHxK, axis=-1).swapaxes(1, 2)
  return (
    _scaled(dq_BxTxHxK, row_scale_HxT).astype(q_BxTxHxK.dtype),
    plan.to_BxSxGxK(dk).astype(k_BxSxGxK.dtype),
    plan.to_BxSxGxK(dv).astype(v_BxSxGxK.dtype),
    drow_scale_BxHxT,
  )


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How the work is cut, and the arrays with it."""

  B: int
  T: int
  S: int
  H: int
  G: int
  Q: int  # query rows of a block
  N: int  # pairs of a chunk
  causal: bool

  @classmethod
  def of(cls, q_BxTxHxK, k_BxSxGxK, causal):
    B, T, H, _ = q_BxTxHxK.shape
    S, G = k_BxSxGxK.shape[1:3]
    blocks = math.ceil(T / _ROWS) if T > _ROWS else min(2, T)
    Q = math.ceil(T / blocks / 8) * 8 if T > 8 else T
    logits = _LOGITS_CPU if S > _SHORT else _LOGITS_CPU_SHORT
    if jax.default_backend() != "cpu":
      logits = _LOGITS_ELSEWHERE
    most = max(2, logits // (Q * S * (H // G)))
    N = max(n for n in range(1, min(most, B * G) + 1) if B * G % n == 0)
    return cls(B, T, S, H, G, Q, N, causal)

  @property
  def R(self) -> int:
    return self.H // self.G

  @property
  def blocks(self) -> int:
    return math.ceil(self.T / self.Q)

  @property
  def spans(self) -> list[tuple[int, int, int]]:
    """(first block, number of blocks, end of their keys)."""
    if not self.causal:
      return [(0, self.blocks, self.S)]
    step = math.ceil(self.blocks / _SPANS)
    cuts = [(first, min(step, self.blocks - first)) for first in range(0, self.blocks, step)]
    return [(first, count, min((first + count) * self.Q, self.S)) for first, count in cuts]

  def pairs(self):
    """Indices of the pairs, [C, N]."""
    return jnp.arange(self.B * self.G).reshape(-1, self.N)

  def queries(self, x_BxTxHxK):
    """[C, N, R, T, K], T padded to whole blocks."""
    return self.rows(jnp.swapaxes(x_BxTxHxK, 1, 2))

  def rows(self, x_BxHxT):
    """[C, N, R, T], or with a further axis, T padded to whole blocks."""
    padding = [(0, 0)] * x_BxHxT.ndim
    padding[2] = (0, self.blocks * self.Q - self.T)
    x = jnp.pad(x_BxHxT, padding)
    return x.reshape(-1, self.N, self.R, *x.shape[2:])

  def keys(self, x_BxSxGxK):
    """[C, N, S, K]."""
    return jnp.swapaxes(x_BxSxGxK, 1, 2).reshape(-1, self.N, self.S, x_BxSxGxK.shape[-1])

  def block(self, x_NxRxT, i):
    """Rows of block i."""
    return jax.lax.dynamic_slice_in_dim(x_NxRxT, i * self.Q, self.Q, axis=2)

  def merged(self, x_NxRxQ):
    """The rows of all R heads on one axis."""
    return x_NxRxQ.reshape(x_NxRxQ.shape[0], self.R * self.Q, *x_NxRxQ.shape[3:])

  def join(self, x_countxNxM):
    """[count, N, M, …] → [N, R, count Q, …]."""
    x = x_countxNxM.reshape(*x_countxNxM.shape[:2], self.R, self.Q, *x_countxNxM.shape[3:])
    return jnp.moveaxis(x, 0, 2).reshape(x.shape[1], self.R, -1, *x.shape[4:])

  def keep(self, mask, pairs_N, i, end):
    """Which of the first `end` keys the rows of block i may attend to, broadcastable to [N, M, end]."""
    rows_Q = i * self.Q + jnp.arange(self.Q)
    keep = jnp.ones((1, 1, 1, 1), bool)
    if self.causal:
      keep = (rows_Q[:, None] >= jnp.arange(end))[None, None]
    if mask is not None:
      mask = mask[..., :end]
      if mask.shape[2] > 1:
        mask = jnp.take(mask, jnp.minimum(rows_Q, self.T - 1), axis=2)
      b, h = mask.shape[:2]
      mask = mask.reshape(b, h if h == 1 else self.G, 1 if h == 1 else self.R, *mask.shape[2:])
      keep &= mask[pairs_N // self.G if b > 1 else 0 * pairs_N, pairs_N % self.G if h > 1 else 0 * pairs_N]
    return self.merged(jnp.broadcast_to(keep, (keep.shape[0], self.R, self.Q, end)))

  def to_BxHxT(self, x_CxNxRxT):
    return x_CxNxRxT.reshape(self.B, self.H, *x_CxNxRxT.shape[3:])[:, :, : self.T]

  def to_BxTxHxK(self, x_CxNxRxTxK):
    return jnp.swapaxes(self.to_BxHxT(x_CxNxRxTxK), 1, 2)

  def to_BxSxGxK(self, x_CxNxSxK):
    return jnp.swapaxes(x_CxNxSxK.reshape(self.B, self.G, *x_CxNxSxK.shape[2:]), 1, 2)


def _scaled(x_BxTxHxK, row_scale_HxT):
  """Queries times their scale, in float32 (or float64): the logits are then a product alone."""
  return x_BxTxHxK * row_scale_HxT.T[:, :, None]


def _dot(subscripts, a, b):
  """A product accumulated in float32, or float64 for float64 operands."""
  wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  if jax.default_backend() == "cpu":  # whose compiler has no batched product of bfloat16 into float32
    a, b = a.astype(wide), b.astype(wide)
  return jnp.einsum(subscripts, a, b, preferred_element_type=wide)
