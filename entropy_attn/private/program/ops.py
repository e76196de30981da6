"""How a program's operations are carried out: on open values, or as code of the two-party engine."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program.spec import Settings, Spec
from entropy_attn.private.program.types import BELOW_ONE, FRACTION, NARROW, NARROWING, WIDE, Program, Step


class Plain:
  """`types.Ops` on open values.

  Args:
    exp_iterations: n of the engine's own exponential, (1 + x/2^n)^(2^n), which is imitated; None: exact.
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

  def square(self, z):
    return jnp.square(z)

  def cut(self, x, ring=WIDE):
    return x

  def cut_square(self, zz):
    return zz

  def lower(self, x, bits):
    return x

  def scale_rows(self, x, factor):
    return x * factor[..., None]

  def halve(self, x, times, narrow):
    return x * 2.0**-times

  def inverse(self, x, narrow):
    return 1 / x


class Engine:
  """`types.Ops` as the engine is to run them.

  Args:
    one_square: its exponential is set to one iteration, (1 + y/2)², and so is a square: cheaper than a product.
    diagonal: see `Transforms`.
  """

  def __init__(self, *, one_square: bool, diagonal: bool):
    self._one_square, self._diagonal = one_square, diagonal

  def exp(self, y):
    return jnp.exp(y)

  def square(self, z):
    return jnp.exp(z + z - 2.0) if self._one_square else z * z

  def cut(self, x, ring=WIDE):
    # As a matrix product: a number times a constant so small is cut by twice the bits, after it was made larger by
    # them, and has no room for that.
    pairs = jnp.concatenate([x.reshape(-1), jnp.zeros(x.size % 2, x.dtype)]).reshape(-1, 2)
    return (pairs @ (np.eye(2, dtype=np.float32) * 2.0 ** -FRACTION[ring])).reshape(-1)[: x.size].reshape(x.shape)

  def cut_square(self, zz):
    return self.cut(zz - 0.5 * 2.0 ** FRACTION[NARROW], NARROW) + 0.5

  def lower(self, x, bits):
    return x * 2.0**-bits

  def scale_rows(self, x, factor):
    N = x.shape[-2]
    if not self._diagonal or N < 2:
      return x * factor[..., None]
    diagonal = factor[..., None] * np.eye(N, dtype=np.int32)  # times integers: nothing is cut off
    return diagonal @ x

  def halve(self, x, times, narrow):
    times += NARROWING * narrow
    return x * 2.0**-times if times else x

  def inverse(self, x, narrow):
    return (1.0 / x) * (BELOW_ONE * 2.0**-NARROWING) if narrow else 1.0 / x


def engine_of(spec: Spec) -> Engine:
  """How operations square and scale on the engine that runs a model's programs."""
  return Engine(one_square=Settings.of(spec).exp_iterations == 1, diagonal=spec.transforms.diagonal)


def run_plain(
  program: Program, inputs: Mapping[str, np.ndarray], run: Callable[[Step, Sequence], Sequence] | None = None
) -> dict[str, jax.Array]:
  """The program's outputs and kept variables on open values, float32.

  Args:
    inputs: the values of program.inputs, by name.
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
