"""Tiles of the GPU kernels: their sizes, which keys and rows of one see each other, and its logits, in base 2."""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from entropy_attn.kernels import pallas

LOG2E = math.log2(math.e)
LN2 = math.log(2)
LEAST = -200.0  # of a logit less the largest, in base 2: its weight is exactly 0, and 0 times it too


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


_CAPPED = {(2, 64): Tile(32, 128, 8, 2), (4, 64): Tile(16, 64, 8, 1)}  # dkdv with a soft cap, which takes registers


def tiles(dtype, K: int, softcap: float | None = None) -> dict[str, Tile] | None:
  """The tile of each kernel, forward, dq (and of its row terms) and dkdv; None if the width is too large."""
  size = jnp.dtype(dtype).itemsize
  kind = next(((size, widest) for widest in (64, 128, 256) if K <= widest and (size, widest) in _TILES), None)
  if kind is None or softcap is None or kind not in _CAPPED:
    return _TILES.get(kind)
  return _TILES[kind] | {"dkdv": _CAPPED[kind]}


def over_keys(step, carry, i, Q, P, blocks, left, right):
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


def grow(m, u_QxP, gain_Q, seen_QxP):
  """The running maximum of u; p, log2 p, and by what older sums shrink, as a logarithm and as a factor."""
  grown = jnp.maximum(m, jnp.max(pallas.where(seen_QxP, u_QxP, -jnp.inf), axis=1))
  z_QxP = pallas.where(seen_QxP, pallas.at_least((u_QxP - grown[:, None]) * gain_Q[:, None], LEAST), LEAST)
  lower = pallas.at_least((m - grown) * gain_Q, LEAST)
  return grown, jnp.exp2(z_QxP), z_QxP, lower, jnp.exp2(lower)


def factor_and_gain(row_scale_Q, softcap):
  """What makes products x the u of logits gain u, positive gain: u = factor x, or its hyperbolic tangent; in base 2."""
  if softcap is None:
    return jnp.where(row_scale_Q < 0, -1.0, 1.0), jnp.abs(row_scale_Q) * LOG2E
  return row_scale_Q / softcap, jnp.full_like(row_scale_Q, softcap * LOG2E)


def unscaled(x, factor, softcap):
  return x * factor if softcap is None else jnp.tanh(x * factor)


def through_cap(ds, u, softcap):
  return ds if softcap is None else ds * (1.0 - u * u)


def seen_of(first_row, first_key, shape, rows_axis, left, right, keep_ref, keys):
  """Which rows and keys of a tile see each other, boolean; None: all."""
  row = first_row + jax.lax.broadcasted_iota(jnp.int32, shape, rows_axis)
  key = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - rows_axis)
  seen = pallas.in_band(row, key, left, right)
  if keep_ref is None:
    return seen
  keep = jnp.expand_dims(keep_ref[keys] != 0, rows_axis)
  return jnp.broadcast_to(keep, shape) if seen is None else seen & keep


def scores(a_QxK, b_PxK, precision):
  return product(a_QxK, b_PxK.T, precision)


def product(a, b, precision):
  return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def precision_of(dtype, interpret):
  """The precision of a product. Float32 takes three on tensor cores: tf32 alone would lose half its digits."""
  if dtype != jnp.float32:
    return jax.lax.Precision.DEFAULT  # not None: jax_default_matmul_precision is not for these
  return jax.lax.Precision.HIGHEST if interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def padded(q, k, v, row_scale_HxT, keep_BxS, Q, P, right):
  """The operands with whole tiles, and a width that is a power of two; copies only where they are not."""
  B, T, H, K = q.shape
  S, G = k.shape[1:3]
  T_, S_, K_ = math.ceil(T / Q) * Q, math.ceil(S / P) * P, max(16, pl.next_power_of_2(K))
  if keep_BxS is None and pallas.needs_keep(right, T, S, S_):
    keep_BxS = jnp.ones((B, S), bool)
  keep = None if keep_BxS is None else pad(keep_BxS.astype(jnp.int32), (B, S_))
  k, v = (pad(x, (B, S_, G, K_)) for x in (k, v))
  return pad(q, (B, T_, H, K_)), k, v, pad(row_scale_HxT, (H, T_)), keep


def pad(x, shape):
  return jnp.pad(x, [(0, whole - n) for n, whole in zip(x.shape, shape, strict=True)])


def compiler_params(tile):
  return plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
