"""What a private program computes, step by step: functions of `math` and arrays.

Every function runs in three ways: on open values, as a program of the two-party engine, and on nothing but shapes,
where `cost` counts. `math` is what differs between them (`program.Plain`, `program.Engine`).

Letters in array names: N new positions, M keys (past and new), D model width, H heads, K head width, F FFN width,
E entries of the causal part of N × M, V vocabulary, W and S its two parts (W S ≥ V).
"""

import jax
import jax.numpy as jnp
import numpy as np

SET_UP = 128 * 128  # elements of a product of more than one ciphertext
_EPSILON = 1e-5  # of the model's LayerNorms
_MASKED = -30.0  # added to what a stock softmax may not see: exp of it is nothing, and fixed point holds it


def set_up(math, ones_N, *, used: int, products: bool):
  """Uses every protocol once, so that keys and oblivious transfers are made apart from what follows.

  Args:
    used: elements that are compared and squared: enough to wake every thread of the engine.
    products: whether matrices are multiplied too.
  """
  some = jnp.sum(math.square(jnp.maximum(ones_N[:used], 0.5))) + jnp.sum(ones_N[:2] * ones_N[2:4])
  square = ones_N[:SET_UP].reshape(128, 128)
  return some + jnp.sum(square @ square) if products else some


def embed(math, one_hot_NxW, selected_BxNx1, table_WxSD, positions_NxD, *, rows: int):
  """x [N, D] of the client's tokens, S w + s each: a one-hot row of w, and the bits of s (B = log2 S) as 0.0 and 1.0.

  The product is done `rows` positions at a time: the server's memory grows with them, the bytes do not.
  """
  N, D = positions_NxD.shape
  parts = [one_hot_NxW[i : i + rows] @ table_WxSD for i in range(0, N, rows)]
  x_NxSxD = (jnp.concatenate(parts) if len(parts) > 1 else parts[0]).reshape(N, -1, D)
  for bit_Nx1 in selected_BxNx1 > 0.5:  # the highest first; a shared bit chooses more cheaply than it multiplies
    half = x_NxSxD.shape[1] // 2
    x_NxSxD = jnp.where(bit_Nx1[:, :, None], x_NxSxD[:, half:], x_NxSxD[:, :half])
  return x_NxSxD[:, 0] + positions_NxD


def embed_whole(math, one_hot_NxV, table_VxD, positions_NxD, *, rows: int):
  """x [N, D] of the client's one-hot rows, `rows` positions at a time."""
  N = len(positions_NxD)
  return jnp.concatenate([one_hot_NxV[i : i + rows] @ table_VxD for i in range(0, N, rows)]) + positions_NxD


def layer_norm(math, x_NxD, *gains, last: bool):
  """The normalised state, times its gain where that was not folded; of the last position alone if `last`."""
  x_NxD = x_NxD[-1:] if last else x_NxD
  centred_NxD = x_NxD - jnp.mean(x_NxD, axis=-1, keepdims=True)
  inverse_N = jax.lax.rsqrt(jnp.mean(math.square(centred_NxD), axis=-1) + _EPSILON)
  y_NxD = math.scale_rows(centred_NxD, inverse_N)
  return y_NxD * gains[0] + gains[1] if gains else y_NxD


def last_row(math, x_NxD):
  """The last position."""
  return x_NxD[-1:]


def linear(math, x_NxD, kernel, *bias, columns: int | None = None):
  """x W + b, so many columns at a time: the server's memory grows with them."""
  width = kernel.shape[1]
  columns = columns or width
  y = jnp.concatenate([x_NxD @ kernel[:, i : i + columns] for i in range(0, width, columns)], axis=1)
  return y + bias[0] if bias else y


def queries_keys_values(math, x_NxD, qkv_Dx3D, *bias, heads: int, last: bool, one_product: bool):
  """q [H, N, K] ([H, 1, K] if `last`), k and v [H, N, K]."""
  D = x_NxD.shape[1]
  as_heads = lambda y: jnp.swapaxes(y.reshape(len(y), heads, D // heads), 0, 1)

  def product(x, first, end):
    y = x @ qkv_Dx3D[:, first * D : end * D]
    y = y + bias[0][first * D : end * D] if bias else y
    return [as_heads(part) for part in jnp.split(y, end - first, axis=1)]

  if one_product and not last:
    return tuple(product(x_NxD, 0, 3))
  q = product(x_NxD[-1:] if last else x_NxD, 0, 1)
  return tuple(q + (product(x_NxD, 1, 3) if one_product else product(x_NxD, 1, 2) + product(x_NxD, 2, 3)))


def cool(math, q_HxNxK, inverse_temperature_HxN):
  """Queries, or the last of them, divided by the temperature of their head and position."""
  return math.scale_rows(q_HxNxK, inverse_temperature_HxN[:, -q_HxNxK.shape[1] :])


def append(math, past_HxPxK, new_HxNxK):
  """The keys or values of all M positions."""
  return jnp.concatenate([past_HxPxK, new_HxNxK], axis=1)


def scores(math, q_HxNxK, k_HxMxK, *, triangle: bool, join: bool, scale: float, halvings: int, narrow: bool):
  """q kᵀ: [H, N, M], or its causal part [H, E] alone if `triangle`; times scale and 2^−halvings.

  Args:
    join: all heads of one query by one product, of a block-diagonal matrix with all keys.
    narrow: whether a narrow ring reads the result.
  """
  H, N, K = q_HxNxK.shape
  M = k_HxMxK.shape[1]
  if join and N == 1:
    blocks_HxHxK = q_HxNxK * np.eye(H, dtype=np.int32)[:, :, None]
    keys_HKxM = jnp.swapaxes(k_HxMxK, 1, 2).reshape(H * K, M)
    s_HxNxM = (blocks_HxHxK.reshape(H, H * K) @ keys_HKxM)[:, None]
  else:
    s_HxNxM = jnp.einsum("HNK,HMK->HNM", q_HxNxK, k_HxMxK)
  if scale != 1.0:
    s_HxNxM = s_HxNxM * scale
  if not triangle:
    return s_HxNxM
  return math.halve(s_HxNxM.reshape(H, N * M)[:, _causal_entries(N, M)], halvings, narrow)


def below_maximum(math, s_HxE, *, length: int, keys: int, low: float | None):
  """s less the maximum of its row, and no less than `low`."""
  lengths_N = _row_lengths(length, keys)
  y_HxE = s_HxE - _segment_max(s_HxE, lengths_N)[:, np.repeat(np.arange(length), lengths_N)]
  return y_HxE if low is None else jnp.maximum(y_HxE, low)


def masked_below_maximum(math, s_HxNxM):
  """The same of all entries, those that causality forbids far below."""
  allowed_NxM = _row_lengths(*s_HxNxM.shape[1:])[:, None] > np.arange(s_HxNxM.shape[2])
  s_HxNxM = s_HxNxM + np.where(allowed_NxM, 0.0, _MASKED).astype(np.float32)
  return s_HxNxM - jnp.max(s_HxNxM, axis=-1, keepdims=True)


def exp_by_squares(math, y, *, exponential):
  """exp of scaled y."""
  return exponential.chain(math.square, y + exponential.start)


def exp_by_engine(math, y):
  """exp y, as the engine has it."""
  return math.exp(y)


def lower(math, x, *, bits: int):
  """2^−bits x, where x came from a narrow ring into the upper half of a wide one."""
  return math.lower(x, bits)


def fill(math, e_HxE, *, length: int, keys: int):
  """[H, N, M] of the causal part, 0 elsewhere."""
  entries_E = _causal_entries(length, keys)
  back = np.full(length * keys, len(entries_E))  # where nothing is allowed: a zero put behind the entries
  back[entries_E] = np.arange(len(entries_E))
  e_HxE = jnp.concatenate([e_HxE, jnp.zeros((len(e_HxE), 1), e_HxE.dtype)], axis=1)
  return e_HxE[:, back].reshape(len(e_HxE), length, keys)


def forbid(math, e_HxNxM):
  """0 where causality forbids."""
  allowed_NxM = _row_lengths(*e_HxNxM.shape[1:])[:, None] > np.arange(e_HxNxM.shape[2])
  return e_HxNxM * allowed_NxM.astype(np.int32)  # as booleans the engine refuses large constants


def row_sums(math, e_HxE, *, length: int, keys: int):
  """Of the causal entries, [H, N]."""
  return jnp.sum(fill(math, e_HxE, length=length, keys=keys), axis=-1)


def sums(math, e_HxNxM):
  """Of rows, [H, N]."""
  return jnp.sum(e_HxNxM, axis=-1)


def inverse(math, sums_HxN, *, narrow: bool):
  """1 / row sums; narrow: for a narrow ring to read."""
  return math.halve(math.reciprocal(sums_HxN), 0, narrow)


def probabilities(math, e_HxE, inverse_HxN, *, length: int, keys: int):
  """Causal entries times the inverse sum of their row."""
  return e_HxE * inverse_HxN[:, np.repeat(np.arange(length), _row_lengths(length, keys))]


def count_impossible(math, sums_HxN, *earlier, keys: int, top: float):
  """Rows, and those of `earlier` layers, whose sum cannot be that of exponentials of which the largest is `top`."""
  most_N = (1.1 * top * _row_lengths(sums_HxN.shape[1], keys)).astype(np.float32)
  bad = jnp.sum((sums_HxN < 0.9 * top).astype(jnp.int32)) + jnp.sum((sums_HxN > most_N).astype(jnp.int32))
  return bad + earlier[0] if earlier else bad


def count_unnormalised(math, y_NxD, *earlier):
  """Rows, and those found impossible before, that no LayerNorm gives: the mean of their squares is nearly 1."""
  mean_N = jnp.mean(math.square(y_NxD), axis=-1)
  bad = jnp.sum((mean_N < 0.25).astype(jnp.int32)) + jnp.sum((mean_N > 4.0).astype(jnp.int32))
  return bad + earlier[0] if earlier else bad


def divided(math, e_HxNxM):
  """Probabilities [H, N, M]."""
  return e_HxNxM / jnp.sum(e_HxNxM, axis=-1, keepdims=True)


def mix(math, e_HxNxM, v_HxMxK, *, join: bool):
  """Sums of values, weighted, [H, N, K]."""
  H, N, M = e_HxNxM.shape
  if not join or N > 1:
    return e_HxNxM @ v_HxMxK
  values_MxHK = jnp.swapaxes(v_HxMxK, 0, 1).reshape(M, -1)
  mixed_HxHxK = (e_HxNxM[:, 0] @ values_MxHK).reshape(H, H, -1)
  return jnp.stack([mixed_HxHxK[h, h] for h in range(H)])[:, None]


def divide_rows(math, u_HxNxK, inverse_HxN):
  """Each row times its factor."""
  return math.scale_rows(u_HxNxK, inverse_HxN)


def attended(math, x_NxD, a_HxNxK, o_DxD, *bias):
  """x + a W_O + b, of as many last positions as a has."""
  N = a_HxNxK.shape[1]
  y_NxD = jnp.swapaxes(a_HxNxK, 0, 1).reshape(N, -1) @ o_DxD
  return x_NxD[-N:] + (y_NxD + bias[0] if bias else y_NxD)


def relu(math, h):
  """max(h, 0)."""
  return jnp.maximum(h, 0.0)


def gelu_by_squares(math, h, *, tail):
  """relu(h) − |h| Φ(−|h|), the latter by a chain of squares up to its end."""
  positive = jnp.maximum(h, 0.0)
  beyond = jnp.minimum(positive + positive - h, tail.high)  # of |h|
  return positive - (tail.chain(math.square, beyond * tail.scale + tail.start) * tail.gain + tail.shift)


def gelu_by_engine(math, h, *, approximate: bool):
  """GELU by the engine's own erf or tanh."""
  if approximate:
    return 0.5 * h * (1 + jnp.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h * h * h)))
  return 0.5 * h * (1 + jax.lax.erf(h * 2.0**-0.5))


def add_residual(math, x_NxD, h_NxD, *factors, names: tuple[str, ...]):
  """beta x + h / alpha, as far as `names` says that they are still variables."""
  values = dict(zip(names, factors, strict=True))
  x_NxD = x_NxD * values["beta"] if "beta" in values else x_NxD
  return x_NxD + (h_NxD / values["alpha"] if "alpha" in values else h_NxD)


def _row_lengths(length: int, keys: int) -> np.ndarray:
  """Keys that each of the last `length` of `keys` positions may attend to."""
  return np.arange(keys - length + 1, keys + 1)


def _causal_entries(length: int, keys: int) -> np.ndarray:
  """Where the causal entries lie in a flattened [length, keys]."""
  return np.flatnonzero(_row_lengths(length, keys)[:, None] > np.arange(keys))


def _segment_max(s_HxE, lengths_N):
  """The maximum [H, N] of each of N neighbouring segments, by a tournament: E − N comparisons a head."""
  lengths = np.array(lengths_N)
  while lengths.max() > 1:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pairs = lengths // 2
    first = np.concatenate([start + 2 * np.arange(n) for start, n in zip(starts, pairs, strict=True)])
    winners = jnp.maximum(s_HxE[:, first], s_HxE[:, first + 1])
    odd = np.flatnonzero(lengths % 2)
    pool = jnp.concatenate([winners, s_HxE[:, starts[odd] + lengths[odd] - 1]], axis=1) if len(odd) else winners
    # Back to the order of the segments: the winners of each, then its odd one out.
    segment = np.concatenate([np.repeat(np.arange(len(lengths)), pairs), odd])
    s_HxE = pool[:, np.argsort(segment, kind="stable")]
    lengths = pairs + lengths % 2
  return s_HxE
