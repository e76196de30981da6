"""A private inference as a sequence of steps, each a pure function that an engine runs on named variables."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# Who knows a variable: nobody (it is a result, in shares), one party, or the client that makes shares of it.
SECRET, SERVER, CLIENT, SHARED = "secret", "server", "client", "shared by the client"
WIDE, NARROW = 64, 32  # bits of a ring
FRACTION = {WIDE: 18, NARROW: 15}  # bits after the point
NARROWING = FRACTION[WIDE] - FRACTION[NARROW]
# From the upper half of a wide ring, where a narrow one's bits land, down to its point: by products with 2^−16 at
# least, since the engine takes smaller constants for something else.
LOWERINGS = (16, WIDE - NARROW - NARROWING - 16)


@dataclasses.dataclass(frozen=True)
class Variable:
  """An input of the whole program."""

  shape: tuple[int, ...]
  owner: str
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Step:
  """One run of the engine.

  Attributes:
    layer: None for embedding and head.
    kind: the operation that tables name.
    function: of `steps`; takes math, then the variables that it reads.
    options: its keyword arguments.
    reads, writes: names of variables.
    ring: bits of the ring it is computed in.
  """

  layer: int | None
  kind: str
  function: Callable
  options: tuple[tuple[str, object], ...]
  reads: tuple[str, ...]
  writes: tuple[str, ...]
  ring: int = WIDE

  def __call__(self, math, *arrays) -> tuple:
    """What it writes."""
    out = self.function(math, *arrays, **dict(self.options))
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


@dataclasses.dataclass(frozen=True)
class Program:
  """What two parties run together.

  Attributes:
    inputs: variables that exist before, by name: weights, tokens, and caches of earlier positions.
    outputs: names of what the client learns.
    kept: names of what a next program takes: the caches.
  """

  inputs: Mapping[str, Variable]
  steps: tuple[Step, ...]
  outputs: tuple[str, ...]
  kept: tuple[str, ...]


def layer_name(step: Step) -> str:
  """'setup', 'embedding', the layer's number, or 'head'."""
  if step.layer is not None:
    return str(step.layer)
  return step.kind if step.kind in ("setup", "embedding") else "head"


class Plain:
  """Open values.

  Args:
    exp_iterations: of the engine's own exponential, which is imitated; None: exact.
  """

  def __init__(self, exp_iterations: int | None):
    self._exp_iterations = exp_iterations

  def exp(self, y):
    if self._exp_iterations is None:
      return jnp.exp(y)
    z = 1 + y * 2.0**-self._exp_iterations
    for _ in range(self._exp_iterations):
      z = z * z
    return z

  square = staticmethod(jnp.square)
  reciprocal = staticmethod(lambda x: 1 / x)
  lower = staticmethod(lambda x, bits: x)
  scale_rows = staticmethod(lambda x, factor: x * factor[..., None])
  halve = staticmethod(lambda x, times, narrow: x * 2.0**-times)


class Engine:
  """Programs of the engine.

  Args:
    one_square: its exponential is set to one iteration, (1 + y/2)², and so is a square: cheaper than a product.
    diagonal: see `Transforms`.
  """

  def __init__(self, *, one_square: bool, diagonal: bool):
    self._one_square, self._diagonal = one_square, diagonal

  exp = staticmethod(jnp.exp)
  reciprocal = staticmethod(lambda x: 1.0 / x)

  def square(self, z):
    return jnp.exp(z + z - 2.0) if self._one_square else z * z

  def scale_rows(self, x, factor):
    N = x.shape[-2]
    if not self._diagonal or N < 2:
      return x * factor[..., None]
    diagonal = factor[..., None] * np.eye(N, dtype=np.int32)  # times integers: nothing is cut off
    return diagonal @ x

  def lower(self, x, bits):
    return x * 2.0**-bits

  def halve(self, x, times, narrow):
    """x 2^−times, as the ring reads it that computes on."""
    times += NARROWING * narrow
    return x * 2.0**-times if times else x


def run_plain(
  program: Program, inputs: Mapping[str, np.ndarray], run: Callable[[Step, Sequence], Sequence] | None = None
) -> dict[str, jax.Array]:
  """The program's outputs and kept variables on open values, float32.

  Args:
    run: what a step writes of what it reads; None: exactly.
  """
  run = run or (lambda step, arrays: step(Plain(None), *arrays))
  values = dict(inputs)
  last_read = {name: i for i, step in enumerate(program.steps) for name in step.reads}
  for i, step in enumerate(program.steps):
    written = run(step, [values[name] for name in step.reads])
    values |= zip(step.writes, written, strict=True)
    for name in step.reads:
      if last_read[name] == i and name not in program.outputs + program.kept:
        values.pop(name, None)
  return {name: values[name] for name in program.outputs + program.kept}
