"""What is public works in every mode of JAX: results, gradients and their dtypes are those of the default mode.

The two tables, modes × functions, are in modes.py and mode_functions.py. All of it:

    python -m pytest tests/test_modes.py -m "" -v -rs
"""

import warnings

import jax
from mode_functions import FUNCTIONS, expected
from modes import MODES, no_sense
import numpy as np
import pytest

FAST = {  # one function of each mode, and the cheapest that can fail; the rest is slow
  "eager": "head_means",
  "enable_x64": "penalty",
  "numpy_rank_promotion=raise": "attention[blockwise]",
  "numpy_dtype_promotion=strict": "cross_entropy_sum",
  "x64, ranks and dtypes": "attention[blockwise]",
  "debug_nans": "softmax_with_entropy[mask]",
  "debug_infs": "penalty",
  "default_matmul_precision=bfloat16": "head_means",
  "checking_leaks": "penalty",
  "transfer_guard=disallow": "penalty",
  "disable_jit": "cross_entropy_sum",
  "checkpoint": "cross_entropy_sum",
  "vmap": "penalty",
  "vmap of one": "head_weights",
  "scan": "penalty",
  "shard_map": "cross_entropy_sum",
  "shard_map within": "attention[blockwise]",
  "mesh of other names": "cross_entropy_sum",
  "Explicit mesh": "attention[blockwise]",
  "Explicit mesh, eager": "head_means",
  "export": "penalty",
  "export[b]": "cross_entropy_sum",
  "export[t]": "penalty",
  "export[b, t]": "attention[blockwise]",
  "export[b, t] for cpu, cuda, tpu": "penalty",
  "B=0": "cross_entropy_sum",
  "T=0": "attention[blockwise]",
  "S=0": "attention[blockwise]",
}


def cells():
  """Each mode with each function; where that makes no sense, the test is skipped, and says why."""
  mark = lambda mode, name: () if FAST[mode] == name else pytest.mark.slow
  return [pytest.param(m, f, id=f"{m} | {f}", marks=mark(m, f)) for m in MODES for f in FUNCTIONS]


@pytest.fixture(autouse=True)
def quiet():
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="attention: ")  # that on a CPU a chip's kernel is blockwise
    yield


def assert_equal(ours, theirs, rounding=3e-5):
  """Within rounding of the largest magnitude, with the same structure, shapes and dtypes."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for x, true in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert (x.shape, x.dtype) == (true.shape, true.dtype)
    x, true = (np.asarray(y, np.float64) for y in (x, true))
    np.testing.assert_allclose(x, true, rtol=0, atol=rounding * max(1, np.abs(true).max(initial=0)))


@pytest.mark.parametrize("mode,name", cells())
def test_what_a_function_gives_is_what_it_gives_by_default(mode, name):
  if reason := no_sense(mode, name):
    pytest.skip(reason)
  # Where a compiler rounds what it fuses is its choice: in bfloat16 all that such a model gives shows it.
  assert_equal(*MODES[mode](name), rounding=2e-2 if "bfloat16" in name else 3e-5)


def test_each_mode_has_a_function_that_is_always_tried():
  assert set(FAST) == set(MODES) and not any(no_sense(mode, name) for mode, name in FAST.items())


def test_what_is_compared_is_not_trivial():
  """Every result and gradient of the default mode has something in it, but for what has no gradient."""
  for name in FAST.values():
    for leaf in jax.tree.leaves(expected(name)[0]):
      assert np.any(np.asarray(leaf, np.float64) != 0), name


# What only a chip runs is lowered for it.
CHIPS = {"gpu": "cuda", "tpu": "tpu"}
PROGRAMS = ["enable_x64", "numpy_rank_promotion=raise", "numpy_dtype_promotion=strict", "x64, ranks and dtypes",
            "default_matmul_precision=bfloat16", "checkpoint", "vmap", "scan", "shard_map", "shard_map within",
            "Explicit mesh"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("mode", PROGRAMS)
def test_a_chips_program_is_made_of_its_kernels(mode, chip):
  class Lowered(Exception):
    pass

  def lowered(fn):
    def lower(*operands):
      raise Lowered(jax.jit(fn).trace(*operands).lower(lowering_platforms=(CHIPS[chip],)).as_text())

    return lower

  with pytest.raises(Lowered) as found:
    MODES[mode](f"attention[{chip}]", jit=lowered)
  for kernel in ("forward", "dq", "dkdv"):
    assert f"entropy_attention_{kernel}" in str(found.value)
