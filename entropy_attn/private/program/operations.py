"""What a private program computes outside of its softmaxes, step by step.

Letters in array names: N new positions, P cached ones, M keys (past and new), D model width, H heads, K head width,
F FFN width, V vocabulary, W and S its two parts (W S ≥ V), B = log2 S.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program.squares import Squares
from entropy_attn.private.program.types import Operation

SET_UP = 128 * 128  # elements of a product of more than one ciphertext
MEAN_SQUARE = (0.25, 4.0)  # between what that of a normalised row lies
_EPSILON = 1e-5  # of the model's LayerNorms


@dataclasses.dataclass(frozen=True)
class SetUp(Operation):
  """Uses every protocol once, so that keys and oblivious transfers are made apart from what follows.

  Attributes:
    used: elements that are compared and squared: enough to wake every thread of the engine.
    products: whether matrices are multiplied too.
  """

  used: int
  products: bool

  def __call__(self, ops, ones_N):
    some = jnp.sum(ops.square(jnp.maximum(ones_N[: self.used], 0.5))) + jnp.sum(ones_N[:2] * ones_N[2:4])
    square = ones_N[:SET_UP].reshape(128, 128)
    return some + jnp.sum(square @ square) if self.products else some


@dataclasses.dataclass(frozen=True)
class Embed(Operation):
  """x [N, D] of the client's tokens, S w + s each: a one-hot row of w, and the bits of s as 0.0 and 1.0.

  Attributes:
    rows: positions of the product at a time: the server's memory grows with them, the bytes do not.
  """

  rows: int

  def __call__(self, ops, one_hot_NxW, selected_BxNx1, table_WxSD, positions_NxD):
    N, D = positions_NxD.shape
    parts = [one_hot_NxW[i : i + self.rows] @ table_WxSD for i in range(0, N, self.rows)]
    x_NxSxD = (jnp.concatenate(parts) if len(parts) > 1 else parts[0]).reshape(N, -1, D)
    for bit_Nx1 in selected_BxNx1 > 0.5:  # the highest first; a shared bit chooses more cheaply than it multiplies
      half = x_NxSxD.shape[1] // 2
      x_NxSxD = jnp.where(bit_Nx1[:, :, None], x_NxSxD[:, half:], x_NxSxD[:, :half])
    return x_NxSxD[:, 0] + positions_NxD


@dataclasses.dataclass(frozen=True)
class EmbedWhole(Operation):
  """x [N, D] of the client's one-hot rows [N, V].

  Attributes:
    rows: as in `Embed`.
  """

  rows: int

  def __call__(self, ops, one_hot_NxV, table_VxD, positions_NxD):
    parts = [one_hot_NxV[i : i + self.rows] @ table_VxD for i in range(0, len(positions_NxD), self.rows)]
    return jnp.concatenate(parts) + positions_NxD


@dataclasses.dataclass(frozen=True)
class LayerNorm(Operation):
  """The normalised state [N, D], times its gain and shifted where those were not folded.

  Attributes:
    last: whether of the last position alone, [1, D].
  """

  last: bool

  def __call__(self, ops, x_NxD, *gains):
    x_NxD = x_NxD[-1:] if self.last else x_NxD
    centred_NxD = x_NxD - jnp.mean(x_NxD, axis=-1, keepdims=True)
    inverse_N = jax.lax.rsqrt(jnp.mean(ops.square(centred_NxD), axis=-1) + _EPSILON)
    y_NxD = ops.scale_rows(centred_NxD, inverse_N)
    return y_NxD * gains[0] + gains[1] if gains else y_NxD


@dataclasses.dataclass(frozen=True)
class LastRow(Operation):
  """The last position of x [N, D], as [1, D]."""

  def __call__(self, ops, x_NxD):
    return x_NxD[-1:]


@dataclasses.dataclass(frozen=True)
class Linear(Operation):
  """x W + b, with or without a bias.

  Attributes:
    columns: of W at a time: the server's memory grows with them; None: all.
  """

  columns: int | None = None

  def __call__(self, ops, x_NxD, kernel, *bias):
    width = kernel.shape[1]
    columns = self.columns or width
    y = jnp.concatenate([x_NxD @ kernel[:, i : i + columns] for i in range(0, width, columns)], axis=1)
    return y + bias[0] if bias else y


@dataclasses.dataclass(frozen=True)
class QueriesKeysValues(Operation):
  """q, k and v [H, N, K] each.

  Attributes:
    last: whether q of the last position alone is made, [H, 1, K].
    one_product: whether what can be is made by one product.
  """

  heads: int
  last: bool
  one_product: bool

  def __call__(self, ops, x_NxD, qkv_Dx3D, *bias):
    D = x_NxD.shape[1]
    as_heads = lambda y: jnp.swapaxes(y.reshape(len(y), self.heads, D // self.heads), 0, 1)

    def product(x, first, end):
      y = x @ qkv_Dx3D[:, first * D : end * D]
      y = y + bias[0][first * D : end * D] if bias else y
      return [as_heads(part) for part in jnp.split(y, end - first, axis=1)]

    if self.one_product and not self.last:
      return tuple(product(x_NxD, 0, 3))
    q = product(x_NxD[-1:] if self.last else x_NxD, 0, 1)
    return tuple(q + (product(x_NxD, 1, 3) if self.one_product else product(x_NxD, 1, 2) + product(x_NxD, 2, 3)))


@dataclasses.dataclass(frozen=True)
class Cool(Operation):
  """Queries, or the last of them, divided by the temperature of their head and position."""

  def __call__(self, ops, q_HxNxK, inverse_temperature_HxN):
    return ops.scale_rows(q_HxNxK, inverse_temperature_HxN[:, -q_HxNxK.shape[1] :])


@dataclasses.dataclass(frozen=True)
class Append(Operation):
  """The keys or values [H, M, K] of all positions: cached ones, then new ones."""

  def __call__(self, ops, past_HxPxK, new_HxNxK):
    return jnp.concatenate([past_HxPxK, new_HxNxK], axis=1)


@dataclasses.dataclass(frozen=True)
class Attended(Operation):
  """x + a W_O + b, of as many last positions as a [H, N, K] has."""

  def __call__(self, ops, x_NxD, a_HxNxK, o_DxD, *bias):
    N = a_HxNxK.shape[1]
    y_NxD = jnp.swapaxes(a_HxNxK, 0, 1).reshape(N, -1) @ o_DxD
    return x_NxD[-N:] + (y_NxD + bias[0] if bias else y_NxD)


@dataclasses.dataclass(frozen=True)
class Relu(Operation):
  """max(h, 0), of any shape."""

  def __call__(self, ops, h):
    return jnp.maximum(h, 0.0)


@dataclasses.dataclass(frozen=True)
class GeluBySquares(Operation):
  """relu(h) − |h| Φ(−|h|), the latter by a chain of squares up to its end.

  Attributes:
    tail: of x Φ(−x); see `squares.gelu_tail`.
  """

  tail: Squares

  def __call__(self, ops, h):
    tail, positive = self.tail, jnp.maximum(h, 0.0)
    beyond = jnp.minimum(positive + positive - h, tail.high)  # of |h|
    return positive - (tail.chain(ops.square, beyond * tail.scale + tail.start) * tail.gain + tail.shift)


@dataclasses.dataclass(frozen=True)
class GeluByEngine(Operation):
  """GELU by the engine's own functions.

  Attributes:
    approximate: by tanh; else by erf.
  """

  approximate: bool

  def __call__(self, ops, h):
    if self.approximate:
      return 0.5 * h * (1 + jnp.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h * h * h)))
    return 0.5 * h * (1 + jax.lax.erf(h * 2.0**-0.5))


@dataclasses.dataclass(frozen=True)
class AddResidual(Operation):
  """beta x + h / alpha, as far as these are still variables.

  Attributes:
    names: of the factors that follow x and h, among alpha and beta.
  """

  names: tuple[str, ...]

  def __call__(self, ops, x_NxD, h_NxD, *factors):
    values = dict(zip(self.names, factors, strict=True))
    x_NxD = x_NxD * values["beta"] if "beta" in values else x_NxD
    return x_NxD + (h_NxD / values["alpha"] if "alpha" in values else h_NxD)


@dataclasses.dataclass(frozen=True)
class CountUnnormalised(Operation):
  """Rows, and those found impossible before, that no LayerNorm gives: the mean of their squares is nearly 1."""

  def __call__(self, ops, y_NxD, *earlier):
    mean_N = jnp.mean(ops.square(y_NxD), axis=-1)
    least, most = MEAN_SQUARE
    bad = jnp.sum((mean_N < least).astype(jnp.int32)) + jnp.sum((mean_N > most).astype(jnp.int32))
    return bad + earlier[0] if earlier else bad
