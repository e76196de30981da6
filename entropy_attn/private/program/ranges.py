"""Fixed point has an end: what a model's numbers reach on real text, against what the rings hold.

Letters in array names: S sequences, N tokens, L layers.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import jax
import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.program import squares, trace
from entropy_attn.private.program.build import build, client_inputs, server_inputs
from entropy_attn.private.program.operations import LayerNorm
from entropy_attn.private.program.ops import Plain, run_plain
from entropy_attn.private.program.softmax import Lower
from entropy_attn.private.program.spec import Transforms
from entropy_attn.private.program.types import FRACTION, LOWERINGS, NARROW, WIDE, Step
from entropy_attn.private.program.weights import Model

MARGIN = 4.0  # times what was seen must still fit: other text reaches further

# A wide ring cuts a product only after it was made, and a cut wants two bits to spare. In the narrow one scores are
# compared and subtracted alone, and so is what activations read; what is multiplied there is no more than 1, or bounded
# by the clamp. What comes back from it lies in the upper half of a wide one, and its first cut multiplies it by more.
LIMITS = {WIDE: 2.0 ** (WIDE - 2 - 2 * FRACTION[WIDE]), NARROW: 2.0 ** (NARROW - 2 - FRACTION[NARROW])}
_LOWERED = 2.0 ** (WIDE - 2 - (WIDE - NARROW) - FRACTION[NARROW] - (FRACTION[WIDE] - LOWERINGS[0]))

# A variance is a multiple of 2^−18 and errs by about that: from here on, a normalised state errs by 1 % at most.
LEAST_VARIANCE = 2.0 ** -FRACTION[WIDE] / 0.02

# What is no more than 1 there, or the sum of such, whatever the text.
BOUNDED = ("exponential", "division", "reciprocal")


@dataclasses.dataclass(frozen=True)
class Range:
  """The largest magnitude of one intermediate, and what its ring holds.

  Attributes:
    layer, kind: of its step.
    name: of the variable, or of the operation that made it.
    largest: magnitude seen; infinite where one was not a number.
    limit: the magnitude at which its ring overflows.
  """

  layer: int | None
  kind: str
  name: str
  largest: float
  limit: float

  @property
  def place(self) -> str:
    """Where it is, in words for the user."""
    where = "embedding and head" if self.layer is None else f"layer {self.layer}"
    return f"{self.kind} ({self.name}) of {where}"

  @property
  def fits(self) -> bool:
    """Whether MARGIN times what was seen is a number that its ring holds."""
    return math.isfinite(self.largest) and self.largest * MARGIN <= self.limit

  @property
  def spare_bits(self) -> float:
    """How many times it may double until it overflows; minus infinity for what is no number."""
    if not math.isfinite(self.largest):
      return -math.inf
    return math.log2(self.limit / max(self.largest, 1e-30))


def choose_exponentials(
  exact: Model, transforms: Transforms, tokens_SxN: np.ndarray, error: float = squares.ERROR
) -> tuple[squares.Squares, ...]:
  """Each layer's exponential: the fewest squares within `error` for the exponents that its softmax really has.

  An exponent so low that it counts for nothing (256 exp y ≤ error) may be clamped.

  Args:
    exact: the model, folded without approximations (`prepare.Exact`).
    tokens_SxN: of text that the model is for.

  Raises:
    UserError: if no chain of squares is so exact.
  """
  if transforms.exponential == "engine":
    return ()
  negligible = -math.log(256 / error)
  lowest = lowest_exponents(exact, tokens_SxN)
  return tuple(squares.exponential(error, max(1.2 * low - 0.5, negligible)) for low in lowest)


def lowest_exponents(exact: Model, tokens_SxN: np.ndarray) -> list[float]:
  """The lowest exponent (score less its row's maximum) of each layer, in the clear.

  Args:
    exact: the model, folded without approximations.
  """
  lowest = [0.0] * len(exact.spec.layers)

  def run(step, arrays):
    written = step(Plain(None), *arrays)
    if step.kind == "maximum":
      lowest[step.layer] = min(lowest[step.layer], float(written[0].min()))
    return written

  _run_all(exact, tokens_SxN, run)
  return lowest


@dataclasses.dataclass
class Statistics:
  """What the private form of a layer, or of embedding and head, reaches on a text, in the clear.

  Attributes:
    layer: None for embedding and head.
    residual: the largest magnitude in the residual stream, in the basis that it has there.
    score: the largest magnitude of a score, scaled and divided by its temperature.
    exponent: the lowest score less its row's maximum.
    variance: the smallest and the largest that a LayerNorm divides by; None where there is none.
    activation: the largest magnitude that an activation reads; None where there is none.
  """

  layer: int | None
  residual: float = 0.0
  score: float = 0.0
  exponent: float = 0.0
  variance: tuple[float, float] | None = None
  activation: float | None = None


def statistics(exact: Model, tokens_SxN: np.ndarray) -> list[Statistics]:
  """Each layer's, and those of embedding and head as the last, over some sequences.

  Args:
    exact: the model, folded without approximations.
  """
  places = [*range(len(exact.spec.layers)), None]
  found = {layer: Statistics(layer) for layer in places}
  largest = lambda array: float(np.nan_to_num(np.max(np.abs(np.asarray(array)), initial=0.0), nan=np.inf))

  def run(step, arrays):
    written, of = step(Plain(None), *arrays), found[step.layer]
    for name, array in zip(step.reads, arrays, strict=True):
      if name == "x":
        of.residual = max(of.residual, largest(array))
    if step.kind == "maximum":
      of.score = max(of.score, largest(arrays[0]))
      of.exponent = min(of.exponent, float(np.min(written[0])))
    elif step.kind == "activation":
      of.activation = max(of.activation or 0.0, largest(arrays[0]))
    elif isinstance(step.operation, LayerNorm):
      variance_N = np.var(np.asarray(arrays[0], np.float64), axis=-1)
      low, high = of.variance or (math.inf, 0.0)
      of.variance = min(low, float(variance_N.min())), max(high, float(variance_N.max()))
    return written

  _run_all(exact, tokens_SxN, run)
  return [found[layer] for layer in places]


def measure(model: Model, tokens_SxN: np.ndarray) -> list[Range]:
  """The range of everything that is read or computed within a step, over some sequences, in the program's order."""
  operations = Plain(None if model.spec.transforms.exponential == "engine" else model.spec.exp_iterations)
  found: dict[tuple, Range] = {}

  def run(step, arrays):
    def see(name, value, limit=None):
      limit = _limit(step) if limit is None else limit
      key = (step.layer, step.kind, name)
      largest = float(np.max(np.nan_to_num(np.abs(np.asarray(value, np.float64)), nan=np.inf), initial=0.0))
      before = found.get(key, Range(*key, 0.0, math.inf))  # a name may pass both rings
      found[key] = Range(*key, max(largest, before.largest), min(limit, before.limit))

    if step.ring == NARROW and step.kind in BOUNDED:
      return step(operations, *arrays)
    for name, array in zip(step.reads, arrays, strict=True):
      see(name, array)
    traced = jax.make_jaxpr(lambda *xs: step(operations, *xs))(*arrays)
    written = trace.walk(traced, arrays, lambda value, aval: value, _evaluation(see))
    if step.writes == ("logits",) and model.spec.reveal == "argmax" and model.spec.transforms.softmax_ring == "32":
      see("logits", written[0], LIMITS[NARROW])  # there they are compared
    return written

  _run_all(model, tokens_SxN, run)
  return list(found.values())


def _limit(step: Step) -> float:
  """The magnitude at which what a step reads or computes overflows."""
  return _LOWERED if isinstance(step.operation, Lower) else LIMITS[step.ring]


def _evaluation(see: Callable[[str, jax.Array], None]):
  """A rule for `trace.walk` that computes; `see` is shown all numbers with a point, by the operation that made them."""

  def rule(equation, inputs):
    outputs = equation.primitive.bind(*inputs, **equation.params)
    outputs = outputs if equation.primitive.multiple_results else [outputs]
    for output in outputs:
      if output.dtype.kind == "f":
        see(equation.primitive.name, output)
    return outputs

  return rule


def check(found: Sequence[Range]) -> Range:
  """The range that comes nearest to what its ring holds, of some that all have room to spare.

  Raises:
    UserError: where MARGIN times an intermediate's range does not fit its ring.
  """
  worst = min(found, key=lambda r: r.spare_bits)
  if not worst.fits:
    raise UserError(
      f"{worst.place} reaches {worst.largest:.3g}: {MARGIN:.0f} times that must stay below "
      f"{worst.limit:.3g}, or fixed point overflows; train with weight decay or clipping, or keep more FFNs "
      "(--transforms=condition_bound=100)"
    )
  return worst


def _run_all(model: Model, tokens_SxN: np.ndarray, run: Callable[[Step, Sequence], Sequence]) -> None:
  """Runs sequences one after the other, each step by `run`."""
  length = tokens_SxN.shape[1]
  program = build(model.spec, length, every_position=True)
  weights = server_inputs(model.weights, length)
  for tokens_N in tokens_SxN:
    run_plain(program, weights | client_inputs(model.spec, tokens_N), run)
