"""What a step costs, read off its own trace: which of its operations work on secrets, and on how many numbers.

The same functions that the engine runs are traced on shapes alone. Each value is public, private to one party, or
secret; what one party knows it computes by itself, so that only operations with a secret, or with both parties' values,
cost.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
from jax.extend import core as jax_core
import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.engine import Settings
from entropy_attn.private.primitives import Cost, Protocols
from entropy_attn.private.program import CLIENT, SERVER, Engine, Step, Variable

PUBLIC, SECRET = "public", "secret"


@dataclasses.dataclass(frozen=True)
class Kind:
  """Who knows a value, and whether it is a number with a point, an integer, or a bit."""

  known_to: str
  fixed_point: bool


def step_cost(
  step: Step, reads: tuple[Variable, ...], math_: Engine, protocols: Protocols, settings: Settings
) -> tuple[Cost, tuple]:
  """The cost of one step, and the shapes and dtypes of what it writes.

  Raises:
    UserError: for an operation whose cost nobody measured.
  """
  args = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in reads]
  closed, shapes = jax.make_jaxpr(lambda *arrays: step(math_, *arrays), return_shape=True)(*args)
  kinds = [Kind(v.owner if v.owner in (SERVER, CLIENT) else SECRET, np.dtype(v.dtype).kind == "f") for v in reads]
  counter = _Counter(protocols, settings)
  counter.run(closed.jaxpr, kinds)
  return counter.cost, shapes


class _Counter:
  """Walks over a trace."""

  def __init__(self, protocols: Protocols, settings: Settings):
    self._p, self._settings = protocols, settings
    self._spread: dict = {}  # elements of what was broadcast
    self.cost = Cost()

  def run(self, jaxpr, kinds: list[Kind]) -> list[Kind]:
    known = dict(zip(jaxpr.invars, kinds, strict=True))
    for constant in jaxpr.constvars:
      known[constant] = Kind(PUBLIC, np.dtype(constant.aval.dtype).kind == "f")

    def kind(atom) -> Kind:
      if isinstance(atom, jax_core.Literal):
        return Kind(PUBLIC, np.dtype(atom.aval.dtype).kind == "f")
      return known[atom]

    for eqn in jaxpr.eqns:
      inputs = [kind(atom) for atom in eqn.invars]
      inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
      if inner is not None:
        outputs = self.run(getattr(inner, "jaxpr", inner), inputs)
      else:
        known_to = _joined(inputs)
        if eqn.primitive.name == "broadcast_in_dim":
          self._spread[eqn.outvars[0]] = math.prod(eqn.invars[0].aval.shape)
        if known_to == SECRET:
          self.cost += self._of(eqn, inputs)
        outputs = [Kind(known_to, np.dtype(v.aval.dtype).kind == "f") for v in eqn.outvars]
      known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [kind(atom) for atom in jaxpr.outvars]

  def _of(self, eqn, inputs: list[Kind]) -> Cost:
    name, n = eqn.primitive.name, math.prod(eqn.outvars[0].aval.shape)
    rule: Callable | None = getattr(self, f"_{name}", None)
    if rule is not None:
      return rule(eqn, inputs, n)
    if name in _FREE:
      return Cost()
    raise UserError(f"private.cost does not know the operation {name}")

  # --- rules: of an equation with a secret result ---

  def _cut(self, n: int, *factors: Kind) -> Cost:
    """A fixed-point product is cut back to its point; one with integers has none to cut."""
    return self._p.each("cut", n) if all(kind.fixed_point for kind in factors) else Cost()

  def _mul(self, eqn, inputs, n) -> Cost:
    x, y = (kind.known_to for kind in inputs)
    if PUBLIC in (x, y):
      return self._cut(n, *inputs)
    product = self._p.product if x == y == SECRET else self._p.product_with_private
    return product(n) + self._cut(n, *inputs)

  def _square(self, eqn, inputs, n) -> Cost:
    return self._p.product(n) + self._cut(n, *inputs)

  def _integer_pow(self, eqn, inputs, n) -> Cost:
    return self._square(eqn, inputs, n) * (eqn.params["y"] - 1)

  def _exp(self, eqn, inputs, n) -> Cost:
    one = self._p.square(n) + self._p.each("cut", n)
    return one * self._settings.exp_iterations + self._p.each("cut", n)

  def _dot_general(self, eqn, inputs, n) -> Cost:
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    left, right = (atom.aval.shape for atom in eqn.invars)
    B, K = (math.prod(left[axis] for axis in axes) for axes in (batch, contracted))
    M, L = math.prod(left) // (B * K), math.prod(right) // (B * K)
    known_to = [kind.known_to for kind in inputs]
    if PUBLIC in known_to:
      return self._cut(n, *inputs)
    directions = 2 if known_to == [SECRET, SECRET] else 1
    cut = all(kind.fixed_point for kind in inputs)
    return self._p.matrix_product(M, K, L, directions=directions, cut=cut) * B

  def _div(self, eqn, inputs, n) -> Cost:
    if inputs[1].known_to == PUBLIC:
      return self._p.each("cut", n)
    if inputs[0].known_to == PUBLIC:
      return self._p.made_of_many("reciprocal", n)
    divisor, known_to = eqn.invars[1], inputs[1].known_to
    spread = self._spread.get(divisor, math.prod(divisor.aval.shape))
    if spread == n:
      return self._p.made_of_many("quotient", n)
    if known_to != SECRET:  # its owner inverts it
      return self._p.product_with_private(n) + self._cut(n, *inputs)
    return self._p.made_of_many("reciprocal", spread) + self._p.product(n) + self._cut(n, *inputs)

  def _rsqrt(self, eqn, inputs, n) -> Cost:
    return self._p.made_of_many("inverse root", n)

  def _erf(self, eqn, inputs, n) -> Cost:
    return self._p.made_of_many("erf", n)

  def _tanh(self, eqn, inputs, n) -> Cost:
    return self._p.made_of_many("tanh", n)

  def _compare(self, eqn, inputs, n) -> Cost:
    return self._p.each("compare", n)

  _gt = _lt = _ge = _le = _compare

  def _max(self, eqn, inputs, n) -> Cost:
    return self._p.each("compare", n) + self._p.each("choose", n)

  _min = _max

  def _reduce_max(self, eqn, inputs, n) -> Cost:
    """A tournament."""
    left, cost = math.prod(eqn.invars[0].aval.shape) // n, Cost()
    while left > 1:
      cost += self._max(eqn, inputs, n * (left // 2))
      left -= left // 2
    return cost

  def _select_n(self, eqn, inputs, n) -> Cost:
    return self._p.each("choose", n) if inputs[0].known_to == SECRET else Cost()

  def _convert_element_type(self, eqn, inputs, n) -> Cost:
    return self._p.each("count", n) if eqn.invars[0].aval.dtype == bool else Cost()

  def _gather(self, eqn, inputs, n) -> Cost:
    if inputs[1].known_to != PUBLIC:
      raise UserError("private.cost does not know a look-up by secret indices")
    return Cost()


def _joined(inputs: list[Kind]) -> str:
  """Who knows a result: whoever knows all it is made of."""
  known_to = {kind.known_to for kind in inputs} - {PUBLIC}
  if not known_to:
    return PUBLIC
  return known_to.pop() if len(known_to) == 1 else SECRET


_FREE = {
  "add", "sub", "neg", "reduce_sum", "reshape", "transpose", "broadcast_in_dim", "concatenate", "slice", "squeeze",
  "split", "stack", "copy", "expand_dims", "iota", "add_any", "rev", "pad", "dynamic_slice",
}  # fmt: skip
