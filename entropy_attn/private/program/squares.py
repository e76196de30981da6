"""Functions of one variable by what two parties compute cheaply: squares, and additions of constants.

z ← scale x + start, then z ← z² + offset a few times: with k squares a polynomial of degree 2^k with k + 2 parameters.
The scale goes into weights, additions are free, and a square is the cheapest product there is. With scale 2^−k, start 1
and no offsets it is (1 + x/2^k)^(2^k), the engine's own exponential; fitted offsets cut its error by orders.
The chains are in squares.json: `private.approximate` fits them.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import pathlib

from entropy_attn.errors import UserError

TABLE = pathlib.Path(__file__).with_name("squares.json")
LOWS = (-2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -10.0, -12.0, -14.0, -16.0)  # the ranges' lower ends
COUNTS = (2, 3, 4, 5, 6)  # of squares
SOFTEN = 1 / 256  # of the exponential's weight, 1 / (exp x + 1/256)
ERROR = 5e-3  # of an exponential; see `exponential`. Perplexity then moves by some 0.01 %
_GELU_SHRINK = 1.7  # the fitted tail squares −1.6 to 2
GELU_END = 3.5  # |x| from which GELU is relu, but for 8e-4


@dataclasses.dataclass(frozen=True)
class Squares:
  """x ↦ gain z + shift with z by a chain of squares, for low ≤ x ≤ high.

  Attributes:
    error: the largest weighted error over the range.
  """

  low: float
  high: float
  scale: float
  start: float
  offsets: tuple[float, ...]
  gain: float
  shift: float
  error: float

  @property
  def top(self) -> float:
    """z at x = 0, before gain and shift: of an exponential its largest value."""
    return float(self.chain(lambda z: z * z, self.start))

  def chain(self, square: Callable, z):
    """z of what was scaled already: of scale x + start."""
    for offset in self.offsets:
      z = square(z) + offset
    return z

  def shrunk(self, factor: float) -> "Squares":
    """The same function by a chain of smaller numbers: of z / factor, z / factor², z / factor⁴ and so on."""
    offsets = tuple(offset * factor ** -(2.0 ** (i + 1)) for i, offset in enumerate(self.offsets))
    gain = self.gain * factor**2.0 ** len(offsets)
    return dataclasses.replace(self, scale=self.scale / factor, start=self.start / factor, offsets=offsets, gain=gain)

  def __call__(self, x):
    """The value, in the clear."""
    return self.gain * self.chain(lambda z: z * z, self.scale * x + self.start) + self.shift


def exponential(error: float, low: float) -> Squares:
  """The fewest squares for exp on a range that reaches down to `low`, and up to 0, with at most `error`.

  The error is weighted by 1 / (exp x + 1/256): where it is at most ε, the probabilities of a row of up to 256 keys
  differ by at most 4 ε in sum, whatever its scores, and of T keys by (2 + T/128) ε.

  Raises:
    UserError: if none of the table is so exact.
  """
  fits = [fit for fit in table()["exponential"] if fit.low <= max(low, LOWS[-1]) and fit.error <= error]
  if not fits:
    raise UserError(f"no chain of squares has an error of {error:g} for exponents down to {low:.1f}: allow more")
  return min(fits, key=lambda fit: (len(fit.offsets), fit.error, -fit.low))


def with_squares(count: int, low: float) -> Squares:
  """The table's exponential of `count` squares down to `low`."""
  return next(fit for fit in table()["exponential"] if (len(fit.offsets), fit.low) == (count, low))


def gelu_tail() -> Squares:
  """x Φ(−x) on [0, GELU_END], with Φ the normal distribution: GELU is relu(x) less this of |x|.

  All its products are below 1, as a narrow ring wants them (`types.BELOW_ONE`).
  """
  return table()["gelu_tail"][0].shrunk(_GELU_SHRINK)


@functools.cache
def table() -> dict[str, list[Squares]]:
  """All fits, under 'exponential' and 'gelu_tail'."""
  found = json.loads(TABLE.read_text())
  return {
    name: [_upright(Squares(**fit | {"offsets": tuple(fit["offsets"])})) for fit in fits]
    for name, fits in found.items()
  }


def _upright(fit: Squares) -> Squares:
  """The same chain with a positive scale: z and −z have one square, and weights take a power of two out of it."""
  return fit if fit.scale > 0 else dataclasses.replace(fit, scale=-fit.scale, start=-fit.start)
