"""Tiles of the TPU kernels: which of them there are, which rows and keys of one see each other, and its logits."""

import dataclasses
import math

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from entropy_attn.kernels import pallas

LEAST = -200.0  # of a logit less the largest: its weight is exactly 0, and 0 times it too
COMPILER_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))
_LANES = 128
_TILE = 512  # rows and keys of a tile: a few of float32, 1 MiB each, fit the vector memory beside the operands


@dataclasses.dataclass(frozen=True)
class Plan:
  """Tiles of Q rows and P keys; T and S in whole tiles; and the band of keys that a row sees (`pallas.band`)."""

  T: int
  S: int
  Q: int
  P: int
  T_: int
  S_: int
  left: int | None
  right: int | None

  @classmethod
  def of(cls, T: int, S: int, causal: bool, window: tuple[int, int] | None):
    def tile(n):
      least = math.ceil(n / _LANES) * _LANES
      sizes = [size for size in (_TILE, _TILE // 2, _LANES) if math.ceil(n / size) * size <= 1.15 * least]
      return sizes[0], math.ceil(n / sizes[0]) * sizes[0]

    (Q, T_), (P, S_) = tile(T), tile(S)
    return cls(T, S, Q, P, T_, S_, *pallas.band(causal, window, T, S))

  def reached(self, i, j):
    """Whether a row of tile i sees a key of tile j."""
    reached = True
    if self.right is not None:
      reached = j * self.P <= i * self.Q + self.Q - 1 + self.right
    if self.left is not None:
      reached &= j * self.P + self.P - 1 >= i * self.Q - self.left
    return reached

  def nearest_keys(self, i, j):
    """Of the tiles of keys that rows i see the nearest to j: nothing is fetched for others."""
    return _clip(j, i * self.Q, self.Q, self.left, self.right, self.P, self.S_)

  def nearest_rows(self, i, j):
    """Of the tiles of rows that see keys j the nearest to i."""
    return _clip(i, j * self.P, self.P, self.right, self.left, self.Q, self.T_)

  def seen(self, i, j, keep_ref):
    """Which keys and rows of tile (i, j) see each other, boolean [P, Q]; None: all."""
    key_PxQ = j * self.P + jax.lax.broadcasted_iota(jnp.int32, (self.P, self.Q), 0)
    row_PxQ = i * self.Q + jax.lax.broadcasted_iota(jnp.int32, (self.P, self.Q), 1)
    seen_PxQ = pallas.in_band(row_PxQ, key_PxQ, self.left, self.right)
    if keep_ref is None:
      return seen_PxQ
    keep_PxQ = jnp.broadcast_to(keep_ref[...].T, (self.P, self.Q)) != 0
    return keep_PxQ if seen_PxQ is None else seen_PxQ & keep_PxQ

  def keep(self, keep_BxS, B):
    """int32 [B, 1, S] in whole tiles; None if nothing but the band masks."""
    if keep_BxS is None:
      if not pallas.needs_keep(self.right, self.T, self.S, self.S_):
        return None
      keep_BxS = jnp.ones((B, self.S), bool)
    return padded(keep_BxS.astype(jnp.int32)[:, None], self.S_)


def _clip(block, start, count, before, after, size, whole):
  """The block of `size` nearest to `block` that start … start + count − 1 see, so far before and after themselves."""
  if before is not None:
    block = jnp.maximum(block, jax.lax.div(jnp.maximum(start - before, 0), size))
  if after is not None:
    block = jnp.minimum(block, jax.lax.div(start + count - 1 + after, size))
  return block if before is None and after is None else jnp.minimum(block, whole // size - 1)


def unscaled(x_PxQ, row_scale, softcap):
  """u and gain [1, Q], positive, of the logits gain u of products x: u is ± x, or a hyperbolic tangent."""
  if softcap is None:
    return x_PxQ * jnp.where(row_scale < 0, -1.0, 1.0), jnp.abs(row_scale)
  return jnp.tanh(x_PxQ * (row_scale / softcap)), jnp.full_like(row_scale, softcap)


def grow(m_ref, u_PxQ, gain, seen_PxQ):
  """Raises the running maximum of u. Gives p, log p, and by what older sums shrink, as a logarithm and as a factor."""
  m = m_ref[...]
  grown = jnp.maximum(m, jnp.max(pallas.where(seen_PxQ, u_PxQ, -jnp.inf), axis=0, keepdims=True))
  m_ref[...] = grown
  z_PxQ = pallas.where(seen_PxQ, pallas.at_least((u_PxQ - grown) * gain, LEAST), LEAST)
  lower = pallas.at_least((m - grown) * gain, LEAST)
  return jnp.exp(z_PxQ), z_PxQ, lower, jnp.exp(lower)


def nt(a_PxK, b_QxK):
  """a bᵀ, float32."""
  return _dot(a_PxK, b_QxK, ((1,), (1,)))


def nn(a, b):
  """a b, float32."""
  return _dot(a, b, ((1,), (0,)))


def _dot(a, b, contracting):
  # One pass of bfloat16 is not float32's product; bfloat16's own is, whatever jax_default_matmul_precision asks.
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  return jax.lax.dot_general(a, b, (contracting, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def to_rows(x_BxTxHxK, whole):
  """[B, H, T, K], T padded."""
  return jnp.swapaxes(jnp.pad(x_BxTxHxK, [(0, 0), (0, whole - x_BxTxHxK.shape[1]), (0, 0), (0, 0)]), 1, 2)


def to_columns(x_BxTxHxK, whole):
  """[B, H, K, T], T padded."""
  return jnp.moveaxis(jnp.pad(x_BxTxHxK, [(0, 0), (0, whole - x_BxTxHxK.shape[1]), (0, 0), (0, 0)]), 1, 3)


def padded(x, whole):
  """The last axis padded."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, whole - x.shape[-1])])
