"""Operations as values: equal ones are one program, and what of them a cost depends on."""

import dataclasses

from private.models import ARCHITECTURES, make
import pytest

from entropy_attn.private.program import build, operations, softmax, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program.types import Operation

COARSE, FINE, LOW = (squares.with_squares(*choice) for choice in ((3, -4.0), (5, -4.0), (3, -6.0)))


@pytest.mark.parametrize("module", [operations, softmax])
def test_every_operation_is_a_frozen_dataclass(module):
  classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
  found = [c for c in classes if issubclass(c, Operation)]
  assert len(found) > 10
  for operation in found:
    assert dataclasses.is_dataclass(operation) and operation.__dataclass_params__.frozen and operation.__doc__


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_operations_of_equal_programs_are_equal_and_can_be_looked_up(name):
  config, _ = make(ARCHITECTURES[name])
  spec = spec_lib.of_config(config.model, spec_lib.transforms_for(config.model), (FINE, FINE))
  one, other = (build.build(spec, 6) for _ in range(2))
  assert [step.operation for step in one.steps] == [step.operation for step in other.steps]
  assert {step.operation for step in one.steps} == {step.operation for step in other.steps}


def test_a_cost_depends_on_the_count_of_squares_alone_and_not_on_where_a_clamp_lies():
  keys = [softmax.ExpBySquares(chain).cost_key() for chain in (COARSE, FINE, LOW)]
  assert keys[0] == keys[2] != keys[1]
  lows = [softmax.BelowMaximum(4, 6, low) for low in (-3.0, -5.0)]
  assert lows[0] != lows[1] and lows[0].cost_key() == lows[1].cost_key()
  assert lows[0].cost_key() != softmax.BelowMaximum(5, 6, -3.0).cost_key()
  assert operations.Relu().cost_key() != softmax.Sums().cost_key()
