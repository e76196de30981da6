"""What the Pallas kernels share: which keys a row may see, and how a kernel is called in each of JAX's modes."""

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from entropy_attn import parts
from entropy_attn.kernels import Forward

LOWEST = float(jnp.finfo(jnp.float32).min)  # what the running maximum begins with


def unsupported(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, dtypes: set[str]) -> str | None:
  """Why no kernel of these dtypes takes the inputs; None if one may."""
  names = {x.dtype.name for x in (q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)}
  if len(names) > 1 or not names <= dtypes:
    return f"operands of {', '.join(sorted(names))}"
  if v_BxSxGxK.shape[-1] != k_BxSxGxK.shape[-1]:
    return f"values of width {v_BxSxGxK.shape[-1]} with keys of width {k_BxSxGxK.shape[-1]}"
  if k_BxSxGxK.shape[-1] == 0:
    return "heads of width 0"
  return None


def band(causal: bool, window: tuple[int, int] | None, T: int, S: int) -> tuple[int | None, int | None]:
  """How far before and after itself a row sees keys, row i those of i − left … i + right; None: as far as there are."""
  left, right = (T, S) if window is None else window
  if causal:
    right = min(right, 0)
  return None if left >= T - 1 else left, None if right >= S - 1 and not causal else right


def needs_keep(right: int | None, T: int, S: int, whole: int) -> bool:
  """Whether a row may see keys that only fill the last tile, of S keys in `whole`: then a mask must hide them."""
  return whole > S and (right is None or T + right > S)


def in_band(row, key, left: int | None, right: int | None):
  """Where row and key, int32 arrays that broadcast, may see each other; None: everywhere."""
  limits = ([] if right is None else [key <= row + right]) + ([] if left is None else [key >= row - left])
  return limits[0] & limits[1] if len(limits) == 2 else limits[0] if limits else None


def where(seen, x, otherwise):
  """x where keys and rows see each other, boolean; None: all do."""
  return x if seen is None else jnp.where(seen, x, otherwise)


def at_least(x, least: float):
  """x, raised to `least` where it is below; NaN stays, which the chips' own maximum takes for the smaller one."""
  return jnp.where(x < least, least, x)


def call(kernel, out_shape: list[tuple[tuple[int, ...], jnp.dtype]], operands: list, **options) -> list[jax.Array]:
  """`pallas_call` with outputs of these shapes and dtypes.

  Under `jax.shard_map` the outputs vary over all the axes that an operand varies over. Under `jax_enable_x64` the
  kernel is traced without: its indices would be 64 bits wide, which the chips' compilers do not take.
  """
  operands = parts.alike(*operands)
  structs = [parts.struct_like(operands[0], *shape_and_dtype) for shape_and_dtype in out_shape]
  with jax.enable_x64(False):
    return pl.pallas_call(kernel, out_shape=structs, **options)(*operands)


def nothing(q_BxTxHxK, v_BxSxGxK, with_entropy: bool, with_rest: bool) -> Forward:
  """`forward` where an axis has no elements: no kernel runs over none."""
  B, T, H, _ = q_BxTxHxK.shape
  zeros_BxHxT = jnp.zeros((B, H, T), jnp.float32)
  out = jnp.zeros((B, T, H, v_BxSxGxK.shape[-1]), v_BxSxGxK.dtype)
  entropy = zeros_BxHxT if with_entropy else None
  rest = out if with_rest and v_BxSxGxK.dtype != jnp.float32 else None
  return Forward(out, entropy, zeros_BxHxT, zeros_BxHxT, rest, zeros_BxHxT)


def no_gradients(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK):
  """`backward` there."""
  B, T, H, _ = q_BxTxHxK.shape
  return *map(jnp.zeros_like, (q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)), jnp.zeros((B, H, T), jnp.float32)


def row_term(forward: Forward, dout_BxTxHxK, dentropy_BxHxT):
  """dout_i·out_i + dentropy_i entropy_i, [B, H, T] float32."""
  out_BxTxHxK = forward.out_BxTxHxK.astype(jnp.float32)
  if forward.rest_BxTxHxK is not None:
    out_BxTxHxK += forward.rest_BxTxHxK.astype(jnp.float32)
  delta_BxHxT = jnp.swapaxes(jnp.sum(dout_BxTxHxK.astype(jnp.float32) * out_BxTxHxK, axis=-1), 1, 2)
  return delta_BxHxT if dentropy_BxHxT is None else delta_BxHxT + dentropy_BxHxT * forward.entropy_BxHxT


def middle(k_BxSxGxK, keep_BxS):
  """The mean of the keys that may be attended, float32 [B, G, K]; 0 where it is not finite.

  A row's ds sum to zero, so that sum_j ds_j k_j = sum_j ds_j (k_j − c) with any c: c times the sum of the rounded ds,
  taken from the sum of their products, leaves rounding nothing to multiply of what the keys have in common.
  """
  k_BxSxGxK = k_BxSxGxK.astype(jnp.float32)
  if keep_BxS is None:
    mean_BxGxK = jnp.mean(k_BxSxGxK, axis=1)
  else:
    kept_BxSxGxK = jnp.where(keep_BxS[:, :, None, None], k_BxSxGxK, 0)
    mean_BxGxK = jnp.sum(kept_BxSxGxK, axis=1) / jnp.maximum(jnp.sum(keep_BxS, axis=1), 1)[:, None, None]
  return jnp.where(jnp.isfinite(mean_BxGxK), mean_BxGxK, 0)
