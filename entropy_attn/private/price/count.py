"""What a step costs, read off its own trace: which of its operations work on secrets, and on how many numbers.

The same functions that the engine runs are traced on shapes alone. Each value is public, private to one party, or
secret; what one party knows it computes by itself, so that only operations with a secret, or with both parties' values,
cost.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from types import MappingProxyType
from typing import NamedTuple

import jax
from jax.extend import core as jax_core
import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.price.protocols import PLAINTEXT_BYTES, Cost, Protocols
from entropy_attn.private.program import trace
from entropy_attn.private.program.packing import ciphertexts
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, SERVER, Variable

PUBLIC, SECRET = "public", "secret"


@dataclasses.dataclass(frozen=True)
class Kind:
  """What is known of a value.

  Attributes:
    known_to: PUBLIC, SERVER, CLIENT, or SECRET.
    fixed_point: whether it is a number with a point, and not an integer or a bit.
    spread_from: where it was just broadcast, the number of elements that it was broadcast from; else None.
  """

  known_to: str
  fixed_point: bool
  spread_from: int | None = None


@dataclasses.dataclass(frozen=True)
class Use:
  """One operation of a trace with a secret result.

  Attributes:
    inputs: what is known of what it reads.
    protocols, settings: of the engine that runs it.
  """

  equation: jax_core.JaxprEqn
  inputs: Sequence[Kind]
  protocols: Protocols
  settings: Settings

  @property
  def n(self) -> int:
    """How many elements its result has."""
    return math.prod(self.equation.outvars[0].aval.shape)

  def shape(self, i: int) -> tuple[int, ...]:
    """The shape of its i-th input."""
    return self.equation.invars[i].aval.shape

  def cut(self) -> Cost:
    """A fixed-point product is cut back to its point; one with integers has none to cut."""
    return self.protocols.each("cut", self.n) if all(kind.fixed_point for kind in self.inputs) else Cost()


class Counted(NamedTuple):
  """What a function of secrets takes.

  Attributes:
    costs: of each operation with a secret result, by its name in the trace, in the order of the trace.
    encoded: the most bytes that one product with a private matrix, encoded as the engine multiplies it, takes.
    shapes: shapes and dtypes of the results, as the function returns them.
  """

  costs: list[tuple[str, Cost]]
  encoded: float
  shapes: object

  @property
  def cost(self) -> Cost:
    """That of all operations."""
    return sum((cost for _, cost in self.costs), Cost())


def counted_of(
  function: Callable,
  reads: Sequence[Variable],
  protocols: Protocols,
  settings: Settings,
  rules: Mapping[str, "Rule"] = MappingProxyType({}),
) -> Counted:
  """What a JAX function of variables takes, operation by operation.

  Args:
    rules: costs of one's own, before those that are measured: by the name of an operation in the trace, or of a
      function under jax.jit, whose operations are then not looked at.

  Raises:
    UserError: for an operation whose cost nobody measured.
  """
  args = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in reads]
  traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  kinds = [Kind(v.owner if v.owner in (SERVER, CLIENT) else SECRET, np.dtype(v.dtype).kind == "f") for v in reads]
  costs, encoded = [], [0.0]

  def rule(equation, inputs: Sequence[Kind]) -> list[Kind]:
    known_to = _joined(inputs)
    if known_to == SECRET:
      name, use = _name(equation), Use(equation, inputs, protocols, settings)
      costs.append((name, rules[name](use) if name in rules else _cost(use)))
      encoded.append(_encoded(use) if name == "dot_general" else 0.0)
    spread = math.prod(equation.invars[0].aval.shape) if equation.primitive.name == "broadcast_in_dim" else None
    return [Kind(known_to, _is_fixed_point(variable.aval), spread) for variable in equation.outvars]

  trace.walk(traced, kinds, lambda value, aval: Kind(PUBLIC, _is_fixed_point(aval)), rule, closed=rules)
  return Counted(costs, max(encoded), shapes)


def _name(equation: jax_core.JaxprEqn) -> str:
  """That of an operation, or of the function that it calls."""
  called = "jaxpr" in equation.params or "call_jaxpr" in equation.params
  return equation.params.get("name", equation.primitive.name) if called else equation.primitive.name


def _cost(use: Use) -> Cost:
  name = use.equation.primitive.name
  if name in _FREE:
    return Cost()
  if name not in _RULES:
    raise UserError(f"private.cost does not know the operation {name}: say what it costs (private.cost --rules)")
  return _RULES[name](use)


def _joined(inputs: Sequence[Kind]) -> str:
  """Who knows a result: whoever knows all it is made of."""
  known_to = {kind.known_to for kind in inputs} - {PUBLIC}
  if not known_to:
    return PUBLIC
  return known_to.pop() if len(known_to) == 1 else SECRET


def _is_fixed_point(aval) -> bool:
  return np.dtype(aval.dtype).kind == "f"


# --- rules: what an operation with a secret result costs ---


def _mul(use: Use) -> Cost:
  x, y = (kind.known_to for kind in use.inputs)
  if PUBLIC in (x, y):
    return use.cut()
  product = use.protocols.product if x == y == SECRET else use.protocols.product_with_private
  return product(use.n) + use.cut()


def _square(use: Use) -> Cost:
  return use.protocols.product(use.n) + use.cut()


def _integer_pow(use: Use) -> Cost:
  return _square(use) * (use.equation.params["y"] - 1)


def _exp(use: Use) -> Cost:
  cut = use.protocols.each("cut", use.n)
  return (use.protocols.square(use.n) + cut) * use.settings.exp_iterations + cut


def _dot_general(use: Use) -> Cost:
  known_to = [kind.known_to for kind in use.inputs]
  if PUBLIC in known_to:
    return use.cut()
  B, M, K, L = _matrices(use)
  directions = 2 if known_to == [SECRET, SECRET] else 1
  cut = all(kind.fixed_point for kind in use.inputs)
  return use.protocols.matrix_product(M, K, L, directions=directions, cut=cut) * B


def _matrices(use: Use) -> tuple[int, int, int, int]:
  """B, M, K, L of a product of B matrices M × K and K × L."""
  (contracted, _), (batch, _) = use.equation.params["dimension_numbers"]
  left, right = use.shape(0), use.shape(1)
  B, K = (math.prod(left[axis] for axis in axes) for axes in (batch, contracted))
  return B, math.prod(left) // (B * K), K, math.prod(right) // (B * K)


def _encoded(use: Use) -> float:
  """Bytes of the plaintexts of one of its matrices."""
  if PUBLIC in (kind.known_to for kind in use.inputs):
    return 0.0
  _, M, K, L = _matrices(use)
  return ciphertexts(M, K, L).pieces * PLAINTEXT_BYTES


def _div(use: Use) -> Cost:
  dividend, divisor = use.inputs
  if divisor.known_to == PUBLIC:
    return use.protocols.each("cut", use.n)
  if dividend.known_to == PUBLIC:
    return use.protocols.made_of_many("reciprocal", use.n)
  divisors = math.prod(use.shape(1)) if divisor.spread_from is None else divisor.spread_from
  if divisors == use.n:
    return use.protocols.made_of_many("quotient", use.n)
  if divisor.known_to != SECRET:  # its owner inverts it
    return use.protocols.product_with_private(use.n) + use.cut()
  return use.protocols.made_of_many("reciprocal", divisors) + use.protocols.product(use.n) + use.cut()


def _max(use: Use) -> Cost:
  return _pair_maximum(use.protocols, use.n)


def _reduce_max(use: Use) -> Cost:
  """A tournament."""
  left, cost = math.prod(use.shape(0)) // use.n, Cost()
  while left > 1:
    cost += _pair_maximum(use.protocols, use.n * (left // 2))
    left -= left // 2
  return cost


def _logistic(use: Use) -> Cost:
  """1 / (1 + exp −x), as the engine has it."""
  return _exp(use) + use.protocols.made_of_many("reciprocal", use.n)


def _abs(use: Use) -> Cost:
  """x times its sign, as the engine has it."""
  return use.protocols.each("compare", use.n) + use.protocols.each("count", use.n) + use.protocols.product(use.n)


def _equal(use: Use) -> Cost:
  return use.protocols.each("equal", use.n)


def _sort(use: Use) -> Cost:
  """By Batcher's network: of each pair the smaller one is chosen, and the larger is their sum less it."""
  axis = use.equation.params["dimension"]
  return _network(use, math.prod(use.shape(0)), use.shape(0)[axis], len(use.inputs))


def _top_k(use: Use) -> Cost:
  """The whole order of values and places by the network of `_sort`: no more than it takes."""
  length = use.shape(0)[use.equation.params["axis"]]
  return _network(use, math.prod(use.shape(0)), length, 2)


def _network(use: Use, n: int, length: int, operands: int) -> Cost:
  """Sorts n numbers in rows of a length, and moves all operands as the first one goes."""
  cost = Cost()
  for pairs in batcher(length):
    at_once = pairs * (n // length)
    cost += use.protocols.each("compare", at_once) + use.protocols.each("choose", at_once) * operands
  return cost


@functools.cache
def batcher(length: int) -> tuple[int, ...]:
  """How many pairs each step of Batcher's odd-even merge sort compares at once."""
  found, p = [], 1
  while p < length:
    k = p
    while k:
      starts = range(k % p, length - k, 2 * k)
      i = np.concatenate([np.arange(j, min(j + k, length - k)) for j in starts] or [np.zeros(0, int)])
      found.append(int(np.sum(i // (2 * p) == (i + k) // (2 * p))))
      k //= 2
    p *= 2
  return tuple(found)


def _pair_maximum(protocols: Protocols, n: int) -> Cost:
  return protocols.each("compare", n) + protocols.each("choose", n)


def _compare(use: Use) -> Cost:
  return use.protocols.each("compare", use.n)


def _and(use: Use) -> Cost:
  """Of bits: next to nothing but its round."""
  return _xor(use) + Cost(bytes=use.n / 8, rounds=1.0)


def _xor(use: Use) -> Cost:
  """Of bits each party's own, and free."""
  if use.equation.invars[0].aval.dtype != bool:
    raise UserError(f"private.cost does not know {use.equation.primitive.name} of numbers, of bits alone")
  return Cost()


def _select_n(use: Use) -> Cost:
  return use.protocols.each("choose", use.n) if use.inputs[0].known_to == SECRET else Cost()


def _convert_element_type(use: Use) -> Cost:
  return use.protocols.each("count", use.n) if use.equation.invars[0].aval.dtype == bool else Cost()


def _gather(use: Use) -> Cost:
  if use.inputs[1].known_to != PUBLIC:
    raise UserError("private.cost does not know a look-up by secret indices")
  return Cost()


def _of_many(name: str) -> Callable[[Use], Cost]:
  return lambda use: use.protocols.made_of_many(name, use.n)


Rule = Callable[[Use], Cost]  # what an operation costs
# By the name of the operation in the trace.
_RULES: Mapping[str, Rule] = {
  "mul": _mul,
  "square": _square,
  "integer_pow": _integer_pow,
  "exp": _exp,
  "dot_general": _dot_general,
  "div": _div,
  "rsqrt": _of_many("inverse root"),
  "erf": _of_many("erf"),
  "tanh": _of_many("tanh"),
  "logistic": _logistic,
  "abs": _abs,
  "eq": _equal,
  "ne": _equal,
  "sort": _sort,
  "top_k": _top_k,
  "gt": _compare,
  "lt": _compare,
  "ge": _compare,
  "le": _compare,
  "max": _max,
  "min": _max,
  "reduce_max": _reduce_max,
  "and": _and,
  "or": _and,
  "xor": _xor,
  "not": _xor,
  "select_n": _select_n,
  "convert_element_type": _convert_element_type,
  "gather": _gather,
}
_FREE = {
  "add", "sub", "neg", "reduce_sum", "reshape", "transpose", "broadcast_in_dim", "concatenate", "slice", "squeeze",
  "split", "stack", "unstack", "copy", "expand_dims", "iota", "add_any", "rev", "pad", "dynamic_slice", "cumsum",
  "stop_gradient",
}  # fmt: skip
