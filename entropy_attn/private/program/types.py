"""A private inference as a sequence of steps, each a pure function that an engine runs on named variables."""

import abc
from collections.abc import Callable, Hashable, Mapping
import dataclasses
from typing import Protocol

import jax
import numpy as np

# Who knows a variable: nobody (it is a result, in shares), one party, or the client that makes shares of it.
SECRET, SERVER, CLIENT, SHARED = "secret", "server", "client", "shared by the client"
WIDE, NARROW = 64, 32  # bits of a ring
FRACTION = {WIDE: 18, NARROW: 15}  # bits after the point
NARROWING = FRACTION[WIDE] - FRACTION[NARROW]
# From the upper half of a wide ring, where a narrow one's bits land, down to its point: by products with 2^−16 at
# least, since the engine takes smaller constants for something else.
LOWERINGS = (16, WIDE - NARROW - NARROWING - 16)
# A narrow product must stay below 1: with 2 · 15 bits after the point it would else pass 2^30, beyond which the engine,
# that does not know its sign, takes it for a negative number now and then. A probability that rounding carries past 1
# would be −3. So inverses of row sums are a little smaller: more than rounding adds (1e-4 was seen), less than it errs.
BELOW_ONE = 1 - 2.0**-13


class Ops(Protocol):
  """What differs between a program on open values and one of the engine (`ops.Plain`, `ops.Engine`)."""

  def exp(self, y: jax.Array) -> jax.Array:
    """The exponential of y ≤ 0 as the engine itself has it, of any shape."""

  def square(self, z: jax.Array) -> jax.Array:
    """z² of any shape, by the cheapest protocol."""

  def cut(self, x: jax.Array, ring: int = WIDE) -> jax.Array:
    """A `Product` of two numbers with a point, cut back to one."""

  def cut_square(self, zz: jax.Array) -> jax.Array:
    """The same in the narrow ring of a square below 1.5, which may pass what `cut` takes there."""

  def lower(self, x: jax.Array, bits: int) -> jax.Array:
    """2^−bits x, where x came from a narrow ring into the upper half of a wide one."""

  def scale_rows(self, x: jax.Array, factor: jax.Array) -> jax.Array:
    """x [..., N, K] with row n times factor [..., N]."""

  def halve(self, x: jax.Array, times: int, narrow: bool) -> jax.Array:
    """2^−times x; narrow: for a narrow ring to read."""

  def inverse(self, x: jax.Array, narrow: bool) -> jax.Array:
    """1 / x of positive x, of any shape; narrow: for a narrow ring to multiply with numbers that do not exceed x."""


class Operation(abc.ABC):
  """A pure function of arrays. Its options are its fields: operations that are equal compile to the same code.

  Every one is a frozen dataclass and runs in three ways: on open values, as code of the two-party engine, and on
  nothing but shapes, where `price.count` counts.
  """

  @abc.abstractmethod
  def __call__(self, ops: Ops, *arrays):
    """The array that it makes of arrays, or a tuple of them."""

  def cost_key(self) -> Hashable:
    """What its cost depends on, besides the shapes that it reads: all its options, unless it says otherwise."""
    return self


@dataclasses.dataclass(frozen=True)
class Function(Operation):
  """Any function of arrays that leaves `ops` alone."""

  function: Callable

  def __call__(self, ops, *arrays):
    return self.function(*arrays)


class Product(Operation):
  """A product on the integers of a ring, linear in each of the two arrays that it reads, or the square of one.

  Nothing is cut off: where both have a point, `Ops.cut` follows. So it is linear to the bit, and nearly all of its work
  can be done before there are numbers (`ahead`). The second array is a matrix that the server alone knows.
  """


class SecretProduct(Product):
  """A product of what nobody knows."""

  @abc.abstractmethod
  def multiply(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same of unsigned integers, modulo 2^bits; of a square x = y or not, so that it is linear in each."""

  def unpadded(self, *shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The result's shape, of the arrays', where shorter arrays than were prepared are to be padded with zeros.

    None: they are not, since a part of what was prepared is theirs.
    """
    return None


class ElementwiseProduct(SecretProduct):
  """One in which each number of x is multiplied with one of y, or with itself, and each product is a result."""

  def __call__(self, ops, x, *y):
    return self.multiply(x, *(y or (x,)))


@dataclasses.dataclass(frozen=True)
class Variable:
  """An input of the whole program.

  Attributes:
    owner: SERVER or CLIENT, who alone knows it; SHARED: the client, who makes shares of it; SECRET: nobody.
    dtype: its NumPy name.
    whole: whether it is given as integers of a ring, for a `Product`: what the server or the client knows; SHARED: a
      share that the client has, the server has nothing; SECRET: a share that each party has. No message makes them.
    ring: of these integers.
  """

  shape: tuple[int, ...]
  owner: str
  dtype: str = "float32"
  whole: bool = False
  ring: int = WIDE


@dataclasses.dataclass(frozen=True)
class Step:
  """One run of the engine.

  Attributes:
    layer: None for embedding and head.
    kind: the operation that tables name.
    operation: takes the ops, then the variables that it reads.
    reads, writes: names of variables.
    ring: bits of the ring it is computed in.
  """

  layer: int | None
  kind: str
  operation: Operation
  reads: tuple[str, ...]
  writes: tuple[str, ...]
  ring: int = WIDE

  def __call__(self, ops: Ops, *arrays) -> tuple:
    """The values of `writes`."""
    out = self.operation(ops, *arrays)
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


@dataclasses.dataclass(frozen=True)
class Program:
  """What two parties run together.

  Attributes:
    inputs: variables that exist before, by name: weights, tokens, and caches of earlier positions.
    outputs: names of what the client learns.
    kept: names of what a next program takes: the caches.
    products: the shapes of what each `Product` reads, by the name of what it writes.
  """

  inputs: Mapping[str, Variable]
  steps: tuple[Step, ...]
  outputs: tuple[str, ...]
  kept: tuple[str, ...]
  products: Mapping[str, tuple[tuple[int, ...], ...]] = dataclasses.field(default_factory=dict)


def layer_name(step: Step) -> str:
  """'setup', 'embedding', the layer's number, or 'head'."""
  if step.layer is not None:
    return str(step.layer)
  return step.kind if step.kind in ("setup", "embedding") else "head"
