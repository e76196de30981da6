"""The steps of a private softmax, as a program has them: on open values."""

import dataclasses

import numpy as np
from private.models import LINEAR, make
import pytest

from entropy_attn.private.program import build, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program.ops import Plain

CHAINS = [squares.with_squares(*choice) for choice in ((3, -4.0), (4, -12.0), (5, -8.0))]


def steps_of(chain, kind, **changes):
  """The first layer's steps of a kind, of 4 tokens."""
  config, _ = make(LINEAR)
  transforms = dataclasses.replace(spec_lib.transforms_for(config.model), **changes)
  spec = spec_lib.of_config(config.model, transforms, (chain, chain))
  return [step for step in build.build(spec, 4).steps if step.layer == 0 and step.kind == kind]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{len(chain.offsets)} squares down to {chain.low:g}")
def test_an_exponent_below_the_range_is_set_to_the_fits_end_and_no_other_is_moved(chain):
  exponents_HxE = np.zeros((2, 10), np.float32)
  exponents_HxE[:, 1:3] = 0.0, 3 * chain.low  # the second row
  exponents_HxE[:, 3:6] = 0.97 * chain.low, 0.6 * chain.low, 0.0
  (maximum,), exponential = steps_of(chain, "maximum"), steps_of(chain, "exponential")[0]
  (y_HxE,) = maximum(Plain(None), np.float32(chain.scale) * exponents_HxE)
  (e_HxE,) = exponential(Plain(None), y_HxE)
  clamped_HxE = np.maximum(exponents_HxE, chain.low)
  np.testing.assert_allclose(y_HxE, chain.scale * clamped_HxE, atol=1e-6)
  exact_HxE = np.exp(clamped_HxE)
  assert np.max(np.abs(e_HxE - exact_HxE) / (exact_HxE + squares.SOFTEN)) <= 1.02 * chain.error + 1e-4
