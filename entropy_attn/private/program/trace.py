"""One walk over a traced program: what becomes of its inputs, equation by equation."""

from collections.abc import Callable, Container, Sequence
from typing import TypeVar

import jax
from jax.extend import core as jax_core

T = TypeVar("T")  # what stands for an array: its value, or what is known of it


def walk(
  traced: jax_core.ClosedJaxpr | jax_core.Jaxpr,
  inputs: Sequence[T],
  constant: Callable[[object, jax.core.ShapedArray], T],
  rule: Callable[[jax_core.JaxprEqn, Sequence[T]], Sequence[T]],
  closed: Container[str] = (),
) -> list[T]:
  """What stands for the outputs of a trace.

  Args:
    traced: as `jax.make_jaxpr` gives it.
    inputs: one an input.
    constant: what stands for a constant or a literal, of its value and its shape and dtype.
    rule: what stands for the outputs of an equation, of what stands for its inputs. Equations that only call another
      trace (jit, custom derivatives) are entered and never shown to it.
    closed: names of functions under jax.jit whose calls are not entered but shown to the rule.
  """
  jaxpr = getattr(traced, "jaxpr", traced)
  known = dict(zip(jaxpr.invars, inputs, strict=True))
  for variable, value in zip(jaxpr.constvars, getattr(traced, "consts", ()), strict=True):
    known[variable] = constant(value, variable.aval)

  def read(atom) -> T:
    return constant(atom.val, atom.aval) if isinstance(atom, jax_core.Literal) else known[atom]

  for equation in jaxpr.eqns:
    read_by_it = [read(atom) for atom in equation.invars]
    called = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    called = None if equation.primitive.name == "scan" else called  # which calls it more than once
    if called is not None and equation.params.get("name") not in closed:
      outputs = walk(called, read_by_it, constant, rule, closed)
    else:
      outputs = rule(equation, read_by_it)
    known |= zip(equation.outvars, outputs, strict=True)
  return [read(atom) for atom in jaxpr.outvars]
