"""Maxima of rows of unequal lengths, by pairs and by fours."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn.private.price import count, protocols
from entropy_attn.private.program.maximum import segment_max
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import SHARED, Variable


@settings(max_examples=25, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 23), min_size=1, max_size=5), seed=st.integers(0, 99), fours=st.booleans(),
  ties=st.booleans(),
)  # fmt: skip
def test_the_largest_of_every_row_is_found(lengths, seed, fours, ties):
  rng = np.random.default_rng(seed)
  s = rng.integers(-2, 2, (2, sum(lengths))) if ties else rng.normal(size=(2, sum(lengths)))
  rows = np.split(s.astype(np.float32), np.cumsum(lengths)[:-1], axis=1)
  expected = np.stack([row.max(axis=1) for row in rows], axis=1)
  np.testing.assert_array_equal(segment_max(jnp.asarray(s, jnp.float32), np.array(lengths), fours), expected)


def test_four_at_a_time_take_fewer_rounds_and_more_bytes():
  """One group of four: by the engine 269.2 bytes and 11 rounds, and by pairs some 150 bytes and 16 rounds."""
  narrow, cheap = protocols.of_setting("cheap")[32], Settings(1, False, "EMP_Ferret")
  lengths, read = np.full(4096, 4), Variable((1, 4 * 4096), SHARED)
  cost = {
    fours: count.counted_of(lambda s, fours=fours: segment_max(s, lengths, fours), [read], narrow, cheap).cost
    for fours in (True, False)
  }
  assert cost[True].bytes / 4096 == pytest.approx(269.2, rel=0.02) and cost[True].rounds == pytest.approx(11, abs=0.5)
  assert cost[False].bytes / 4096 == pytest.approx(150, rel=0.05) and cost[False].rounds == pytest.approx(16, abs=0.5)
