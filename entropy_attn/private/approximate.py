"""Functions of one variable by what two parties compute cheaply: squares, and additions of constants.

z ← scale x + start, then z ← z² + offset a few times: with k squares a polynomial of degree 2^k with k + 2 parameters.
The scale goes into weights, additions are free, and a square is the cheapest product there is. With scale 2^−k, start 1
and no offsets it is (1 + x/2^k)^(2^k), the engine's own exponential; fitted offsets cut its error by orders.

    python -m entropy_attn.private.approximate     (fits them anew into approximate.json, two minutes)
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import math
import pathlib

import numpy as np

from entropy_attn.errors import UserError

_TABLE = pathlib.Path(__file__).with_name("approximate.json")
_LOWS = (-2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -10.0, -12.0, -14.0, -16.0)
LOWEST = _LOWS[-1]
_SQUARES = (2, 3, 4, 5, 6)
_SOFTEN = 1 / 256  # of the exponential's weight
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
    """What `chain` makes of x = 0."""
    return float(self.chain(lambda z: z * z, self.start))

  def chain(self, square: Callable, z):
    """z of what was scaled already: of scale x + start."""
    for offset in self.offsets:
      z = square(z) + offset
    return z

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
  fits = [fit for fit in _table()["exponential"] if fit.low <= max(low, LOWEST) and fit.error <= error]
  if not fits:
    raise UserError(f"no chain of squares has an error of {error:g} for exponents down to {low:.1f}: allow more")
  return min(fits, key=lambda fit: (len(fit.offsets), fit.error, -fit.low))


def with_squares(count: int, low: float) -> Squares:
  """The table's exponential of so many squares down to `low`."""
  return next(fit for fit in _table()["exponential"] if (len(fit.offsets), fit.low) == (count, low))


def gelu_tail() -> Squares:
  """x Φ(−x) on [0, GELU_END], with Φ the normal distribution: GELU is relu(x) less this of |x|."""
  return _table()["gelu_tail"][0]


@functools.cache
def _table() -> dict[str, list[Squares]]:
  found = json.loads(_TABLE.read_text())
  return {name: [Squares(**fit | {"offsets": tuple(fit["offsets"])}) for fit in fits] for name, fits in found.items()}


def _fit(function, weight, low, high, squares, *, affine, starts) -> Squares:
  """The chain of the smallest weighted error that descents from some starting points find.

  Args:
    affine: whether gain and shift are free. Else both are fixed at 1 and 0, which costs nothing: a chain can be scaled.
    starts: lists of scale, start and offsets.
  """
  from scipy import optimize

  x = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, 400))
  target, weights = function(x), weight(x)

  def value(p):
    """The chain, with the best gain (and shift) for its parameters."""
    z = p[0] * x + p[1]
    for offset in p[2:]:
      z = z * z + offset
    z = np.clip(np.nan_to_num(z, nan=1e6), -1e6, 1e6)
    columns = np.stack([z, np.ones_like(z)], axis=1) if affine else z[:, None]
    solution = np.linalg.lstsq(columns * weights[:, None], target * weights, rcond=None)[0]
    return columns @ solution, solution

  def residuals(p, power):
    error = np.abs((value(p)[0] - target) * weights) + 1e-15
    return error.max() * (error / error.max()) ** (power / 2)  # a high power of the norm is nearly the maximum

  best, best_error = None, math.inf
  for p in starts:
    for power in (2, 8, 32, 128):
      p = optimize.least_squares(residuals, p, args=(power,), x_scale="jac", max_nfev=300).x
    error = np.max(np.abs((value(p)[0] - target) * weights))
    if error < best_error:
      best, best_error = p, error
  gain, shift = (*value(best)[1], 0.0)[:2]
  if affine:
    best[-1], shift = 0.0, shift + gain * best[-1]  # the last offset and the shift are one
  else:
    best, gain = _rescaled(best, gain), 1.0
  return Squares(low, high, *map(float, best[:2]), tuple(map(float, best[2:])), float(gain), float(shift), best_error)


def _rescaled(p, gain):
  """The parameters of `gain` times the chain: z' = c z needs c² of the square before, and so on down."""
  p, factor = np.array(p), gain
  for i in range(len(p) - 1, 1, -1):
    p[i] *= factor
    factor = math.sqrt(factor)
  p[:2] *= factor
  return p


def _starts(low, high, squares, first=()):
  """The given points, and random ones."""
  rng = np.random.default_rng(0)
  for point in first:
    yield np.array(point)
  for _ in range(24):
    scale = rng.uniform(0.8, 2.2) / (high - low) * 2
    yield np.array([scale, -scale * rng.uniform(low, high), *rng.uniform(-1.5, 1.0, squares)])


def _main() -> None:
  """Writes the table."""
  weight = lambda x: 1 / (np.exp(x) + _SOFTEN)
  tail = np.vectorize(lambda x: x * 0.5 * math.erfc(x / math.sqrt(2)))
  fits = []
  for low in _LOWS:
    for k in _SQUARES:
      starts = _starts(low, 0.0, k, [[2.0**-k, 1.0, *[0.0] * k]])
      fits.append(_fit(np.exp, weight, low, 0.0, k, affine=False, starts=starts))
      print(f"exp on [{low:g}, 0], {k} squares: error {fits[-1].error:.1e}", flush=True)
  gelu = _fit(tail, np.ones_like, 0.0, GELU_END, 3, affine=True, starts=_starts(0.0, GELU_END, 3))
  print(f"GELU's tail, 3 squares: error {gelu.error:.1e}")
  table = {"exponential": fits, "gelu_tail": [gelu]}
  lines = {name: [dataclasses.asdict(fit) for fit in fits] for name, fits in table.items()}
  _TABLE.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
  _main()
