"""What a private program computes outside of its softmaxes, step by step.

Letters in array names: N new positions, P cached ones, M keys (past and new), D model width, H heads, K head width,
F FFN width, V vocabulary, W and S its two parts (W S ≥ V), B = log2 S.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program.squares import Squares
from entropy_attn.private.program.types import WIDE, Operation

SET_UP = 128 * 128  # elements of a product of more than one ciphertext
MEAN_SQUARE = (0.25, 4.0)  # between what that of a normalised row lies


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
class Select(Operation):
  """x [N, D] of rows of a table [N, S D], by the bits (0.0 and 1.0) of which part each token is, and its positions."""

  def __call__(self, ops, rows_NxSD, selected_BxNx1, positions_NxD):
    N, D = positions_NxD.shape
    x_NxSxD = rows_NxSD.reshape(N, -1, D)
    for bit_Nx1 in selected_BxNx1 > 0.5:  # the highest first; a shared bit chooses more cheaply than it multiplies
      half = x_NxSxD.shape[1] // 2
      x_NxSxD = jnp.where(bit_Nx1[:, :, None], x_NxSxD[:, half:], x_NxSxD[:, :half])
    return x_NxSxD[:, 0] + positions_NxD


@dataclasses.dataclass(frozen=True)
class Place(Operation):
  """x [N, D] of the tokens' own rows, and their positions."""

  def __call__(self, ops, rows_NxD, positions_NxD):
    return rows_NxD + positions_NxD


@dataclasses.dataclass(frozen=True)
class LayerNorm(Operation):
  """The normalised state [N, D], times its gain and shifted where those were not folded.

  Attributes:
    epsilon: added to the variance.
  """

  epsilon: float

  def __call__(self, ops, x_NxD, *gains):
    centred_NxD = Centre()(ops, x_NxD)
    inverse_N = InverseDeviation(self.epsilon)(ops, ops.square(centred_NxD))
    y_NxD = ops.scale_rows(centred_NxD, inverse_N)
    return y_NxD * gains[0] + gains[1] if gains else y_NxD


@dataclasses.dataclass(frozen=True)
class Centre(Operation):
  """The state [N, D] less its mean."""

  def __call__(self, ops, x_NxD):
    return x_NxD - jnp.mean(x_NxD, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class InverseDeviation(Operation):
  """What normalises each row, [N], of the squares [N, D] of a centred state.

  Attributes:
    epsilon: added to their mean.
  """

  epsilon: float

  def __call__(self, ops, squares_NxD):
    return jax.lax.rsqrt(jnp.mean(squares_NxD, axis=-1) + self.epsilon)


@dataclasses.dataclass(frozen=True)
class Gain(Operation):
  """A normalised state times its gain, and shifted."""

  def __call__(self, ops, y_NxD, gain_D, shift_D):
    return y_NxD * gain_D + shift_D


@dataclasses.dataclass(frozen=True)
class LastRow(Operation):
  """The last position of x [N, D], as [1, D]."""

  def __call__(self, ops, x_NxD):
    return x_NxD[-1:]


@dataclasses.dataclass(frozen=True)
class Cut(Operation):
  """An uncut product, cut back to its point, and a bias where there is one.

  Attributes:
    ring: that it is in.
  """

  ring: int = WIDE

  def __call__(self, ops, xw, *bias):
    y = ops.cut(xw, self.ring)
    return y + bias[0] if bias else y


@dataclasses.dataclass(frozen=True)
class QueriesKeysValues(Operation):
  """q, k and v [H, N, K] each, of uncut products whose columns they are, one after the other.

  Attributes:
    products: how many; what follows is a bias. Queries may be fewer than keys, where they have a product of their own.
  """

  heads: int
  products: int

  def __call__(self, ops, *arrays):
    arrays, bias = arrays[: self.products], arrays[self.products :]
    D = sum(xw.shape[1] for xw in arrays) // 3
    parts, at = [], 0
    for xw in arrays:
      y = ops.cut(xw)
      width = y.shape[1]
      y = y + bias[0][at : at + width] if bias else y
      parts += jnp.split(y, width // D, axis=1)
      at += width
    return tuple(jnp.swapaxes(y.reshape(len(y), self.heads, D // self.heads), 0, 1) for y in parts)


@dataclasses.dataclass(frozen=True)
class AddFirst(Operation):
  """Values [H, N, K] and those of the first layer: a value residual, of which the weights are halves already."""

  def __call__(self, ops, v_HxNxK, first_HxNxK):
    return v_HxNxK + first_HxNxK


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
class Merge(Operation):
  """What the heads attended to [H, N, K], as [N, D]."""

  def __call__(self, ops, a_HxNxK):
    return jnp.swapaxes(a_HxNxK, 0, 1).reshape(a_HxNxK.shape[1], -1)


@dataclasses.dataclass(frozen=True)
class Attended(Operation):
  """x + a W_O + b of as many last positions as the uncut a W_O [N, D] has."""

  def __call__(self, ops, x_NxD, xw_NxD, *bias):
    y_NxD = ops.cut(xw_NxD)
    return x_NxD[-len(y_NxD) :] + (y_NxD + bias[0] if bias else y_NxD)


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
    positive, z = GeluBegun(self.tail)(ops, h)
    return GeluEnded(self.tail)(ops, positive, self.tail.chain(ops.square, z))


@dataclasses.dataclass(frozen=True)
class GeluBegun(Operation):
  """What `GeluBySquares` starts with: relu(h), and z before its first square.

  Attributes:
    tail: as there.
  """

  tail: Squares

  def __call__(self, ops, h):
    positive = jnp.maximum(h, 0.0)
    beyond = jnp.minimum(positive + positive - h, self.tail.high)  # of |h|
    return positive, beyond * self.tail.scale + self.tail.start


@dataclasses.dataclass(frozen=True)
class GeluEnded(Operation):
  """GELU, of relu(h) and of z after its last square.

  Attributes:
    tail: as in `GeluBegun`.
  """

  tail: Squares

  def __call__(self, ops, positive, z):
    return positive - (z * self.tail.gain + self.tail.shift)


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
