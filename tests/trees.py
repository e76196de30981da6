"""Trees of arrays held against each other: the same structure, and leaves that are equal or near."""

import jax
import numpy as np


def assert_close(a, b, **tolerance):
  """With the tolerances of `numpy.testing.assert_allclose`, whose rtol is 1e-7 unless it is given."""
  _each(np.testing.assert_allclose, a, b, **tolerance)


def assert_equal(a, b):
  _each(np.testing.assert_array_equal, a, b)


def _each(check, a, b, **options):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  named = lambda path, x, y: check(x, y, err_msg=jax.tree_util.keystr(path), **options)
  jax.tree.map_with_path(named, a, b)
