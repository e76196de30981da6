"""The walk over a trace: every equation once, inner traces entered, constants mapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn.private.program import trace


@jax.custom_jvp
def doubled(x):
  return x + x


doubled.defjvps(lambda t, out, x: 2 * t)


def fn(x, y):
  table = np.arange(6.0, dtype=np.float32).reshape(2, 3)
  return jax.jit(lambda a: jnp.where(a > 0, a, 3.0))(x @ table), doubled(y) * 2.0, y


def test_a_rule_that_computes_gives_what_the_function_gives():
  x, y = np.array([[1.0, -2.0]], np.float32), np.float32(4)
  seen = []

  def rule(equation, inputs):
    seen.append(equation.primitive.name)
    outputs = equation.primitive.bind(*inputs, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]

  found = trace.walk(jax.make_jaxpr(fn)(x, y), [x, y], lambda value, aval: value, rule)
  for ours, true in zip(found, fn(x, y), strict=True):
    np.testing.assert_array_equal(ours, true)
  assert "select_n" in seen and seen.count("add") == 1  # what the inner traces hold
  assert not {"jit", "pjit", "custom_jvp_call"} & set(seen)


def test_what_stands_for_arrays_may_be_anything():
  known = trace.walk(
    jax.make_jaxpr(fn)(jnp.ones((1, 2)), 1.0), [{"x"}, {"y"}],
    lambda value, aval: set(), lambda equation, inputs: [set().union(*inputs) for _ in equation.outvars],
  )  # fmt: skip
  assert known == [{"x"}, {"y"}, {"y"}]


def test_inputs_must_be_as_many_as_the_trace_reads():
  with pytest.raises(ValueError):
    trace.walk(jax.make_jaxpr(fn)(jnp.ones((1, 2)), 1.0), [1], lambda value, aval: value, lambda equation, inputs: [])
