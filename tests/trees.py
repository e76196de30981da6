"""Trees of arrays held against each other: the same structure, and leaves that are equal or near."""

import jax
import numpy as np


def assert_close(a, b, **tolerance):
  """With the tolerances of `numpy.testing.assert_allclose`, whose rtol is 1e-7 unless it is given."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)
