"""Chains of squares: as near to their functions as they say, and chosen for it."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.program import fits, squares, weights

FITS = squares.table()["exponential"]


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: f"{fit.low:g}, {len(fit.offsets)} squares")
def test_every_chain_is_as_near_to_the_exponential_as_it_says_and_stays_small(fit):
  x = np.linspace(fit.low, 0, 20_001)
  error = np.max(np.abs(fit(x) - np.exp(x)) / (np.exp(x) + 1 / 256))
  assert error <= 1.01 * fit.error + 1e-12
  z = fit.scale * x + fit.start
  for offset in fit.offsets:
    assert np.max(np.abs(z)) < math.sqrt(2)  # or its square leaves the narrow ring
    z = z * z + offset
  assert fit.gain == 1


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: f"{fit.low:g}, {len(fit.offsets)} squares")
def test_every_chain_goes_into_weights(fit):
  """Its scale is g 2^−h with 1 ≤ g < 2, whatever sign the fit found."""
  assert 1 <= fit.scale * 2.0 ** weights.halvings(fit) < 2


def test_fitted_squares_beat_the_engines_own_exponential_by_orders():
  x = np.linspace(-8, 0, 10_001)
  weight = 1 / (np.exp(x) + 1 / 256)
  own = max(np.max(np.abs((1 + x / 2**6) ** (2**6) - np.exp(x)) * weight), 0)
  fitted = next(fit for fit in FITS if fit.low == -8 and len(fit.offsets) == 4)
  assert fitted.error < own / 30  # two squares fewer


@settings(max_examples=60, deadline=None)
@given(
  seed=st.integers(0, 2**31), keys=st.sampled_from([2, 17, 128, 512]), spread=st.floats(0.1, 12),
  error=st.sampled_from([5e-3, 1e-3, 2e-4]),
)  # fmt: skip
def test_probabilities_differ_by_no_more_than_promised(seed, keys, spread, error):
  scores = np.random.default_rng(seed).normal(size=keys) * spread
  y = scores - scores.max()
  fit = squares.exponential(error, max(y.min(), -math.log(256 / error)))
  exact = np.exp(y) / np.exp(y).sum()
  approximated = fit(np.maximum(y, fit.low))
  difference = np.abs(approximated / approximated.sum() - exact).sum()
  # The promise, and what clamping adds: at most 256 exp(low) in the same weight.
  clamped = 256 * math.exp(fit.low) if y.min() < fit.low else 0.0
  assert difference <= (2 + keys / 128) * (fit.error + clamped)


def test_the_fewest_squares_within_the_error_are_chosen():
  loose, tight = (squares.exponential(error, -6.0) for error in (5e-2, 1e-3))
  assert len(loose.offsets) < len(tight.offsets)
  assert tight.low <= -6
  with pytest.raises(UserError, match="no chain of squares has an error of 1e-09"):
    squares.exponential(1e-9, -4.0)


def test_gelu_by_its_tail():
  tail = squares.gelu_tail()
  x = np.linspace(-8, 8, 20_001)
  ours = np.maximum(x, 0) - tail(np.minimum(np.abs(x), tail.high))
  exact = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  assert np.max(np.abs(ours - exact)) < 5e-3


@pytest.mark.slow
def test_the_table_is_what_the_fit_gives():
  weight = lambda x: 1 / (np.exp(x) + 1 / 256)
  starts = fits.starting_points(-4.0, 0.0, 3, [[2.0**-3, 1.0, 0.0, 0.0, 0.0]])
  again = fits.fit_chain(np.exp, weight, -4.0, 0.0, 3, affine=False, starts=starts)
  known = next(fit for fit in FITS if fit.low == -4 and len(fit.offsets) == 3)
  np.testing.assert_allclose(again.error, known.error, rtol=0.05)
