"""Chains of squares fitted to functions, for the smallest largest error."""

from collections.abc import Callable, Iterable, Iterator
import math

import numpy as np
from scipy import optimize

from entropy_attn.private.program.squares import Squares


def fit_chain(
  function: Callable, weight: Callable, low: float, high: float, squares: int, *, affine: bool, starts: Iterable
) -> Squares:
  """The chain of the smallest weighted error that descents from some starting points find.

  Args:
    function, weight: of arrays of x; the error is multiplied by the weight.
    squares: how many.
    affine: whether gain and shift are free. Else both are fixed at 1 and 0, which costs nothing: a chain can be scaled.
    starts: lists of scale, start and offsets.
  """
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


def starting_points(low: float, high: float, squares: int, first: Iterable = ()) -> Iterator[np.ndarray]:
  """Points [2 + squares] for `fit_chain` to start from: the given ones, and random ones."""
  rng = np.random.default_rng(0)
  for point in first:
    yield np.array(point)
  for _ in range(24):
    scale = rng.uniform(0.8, 2.2) / (high - low) * 2
    yield np.array([scale, -scale * rng.uniform(low, high), *rng.uniform(-1.5, 1.0, squares)])
