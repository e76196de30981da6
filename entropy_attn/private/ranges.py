"""Fixed point has an end: what a model's numbers reach on real text, against what the rings hold.

Letters in array names: S sequences, N tokens, L layers.
"""

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax.extend import core as jax_core
import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private import approximate, prepare
from entropy_attn.private.build import build, client_inputs, server_inputs
from entropy_attn.private.program import FRACTION, NARROW, WIDE, Plain, run_plain
from entropy_attn.private.spec import Transforms

MARGIN = 4.0  # times what was seen must still fit: other text reaches further
ERROR = 5e-3  # of an exponential; see `approximate.exponential`. Perplexity then moves by some 0.01 %

# A wide ring cuts a product only after it was made, and a cut wants two bits to spare. In the narrow one scores are
# compared and subtracted alone; what is multiplied there is no more than 1, or bounded by the clamp.
LIMITS = {WIDE: 2.0 ** (WIDE - 2 - 2 * FRACTION[WIDE]), NARROW: 2.0 ** (NARROW - 2 - FRACTION[NARROW])}

_BOUNDED = ("exponential", "division", "reciprocal")


@dataclasses.dataclass(frozen=True)
class Range:
  """The largest magnitude of one intermediate, and what its ring holds.

  Attributes:
    name: of the variable, or of the operation that made it.
  """

  layer: int | None
  kind: str
  name: str
  largest: float
  limit: float

  @property
  def place(self) -> str:
    """For the user."""
    where = "embedding and head" if self.layer is None else f"layer {self.layer}"
    return f"{self.kind} ({self.name}) of {where}"

  @property
  def spare_bits(self) -> float:
    """Doublings until it overflows."""
    return math.log2(self.limit / max(self.largest, 1e-30))


def choose_exponentials(
  variables: Mapping, model_config, transforms: Transforms, tokens_SxN: np.ndarray, error: float = ERROR
) -> tuple[approximate.Squares, ...]:
  """Each layer's exponential: the fewest squares within `error` for the exponents that its softmax really has.

  An exponent so low that it counts for nothing (256 exp y ≤ error) may be clamped.

  Args:
    tokens_SxN: of text that the model is for.
  """
  if transforms.exponential == "engine":
    return ()
  lowest = lowest_exponents(variables, model_config, transforms, tokens_SxN)
  negligible = -math.log(256 / error)
  return tuple(approximate.exponential(error, max(1.2 * low - 0.5, negligible)) for low in lowest)


def lowest_exponents(variables, model_config, transforms: Transforms, tokens_SxN: np.ndarray) -> list[float]:
  """The lowest exponent (score less its row's maximum) of each layer, in the clear and exactly."""
  model = prepare.prepare(variables, model_config, transforms.exactly(), ())
  lowest = [0.0] * len(model.spec.layers)

  def run(step, arrays):
    written = step(Plain(None), *arrays)
    if step.kind == "maximum":
      lowest[step.layer] = min(lowest[step.layer], float(written[0].min()))
    return written

  _run_all(model, tokens_SxN, run)
  return lowest


def measure(model: prepare.Model, tokens_SxN: np.ndarray) -> list[Range]:
  """The range of everything that is read or computed within a step, over some sequences, in the program's order."""
  operations = Plain(None if model.spec.transforms.exponential == "engine" else model.spec.exp_iterations)
  found: dict[tuple, Range] = {}

  def run(step, arrays):
    def see(name, value):
      key = (step.layer, step.kind, name)
      largest = float(np.max(np.nan_to_num(np.abs(np.asarray(value, np.float64)), nan=np.inf), initial=0.0))
      found[key] = Range(*key, max(largest, found[key].largest if key in found else 0.0), LIMITS[step.ring])

    if step.ring == NARROW and step.kind in _BOUNDED:
      return step(operations, *arrays)
    for name, array in zip(step.reads, arrays, strict=True):
      see(name, array)
    closed = jax.make_jaxpr(lambda *xs: step(operations, *xs))(*arrays)
    return _evaluated(closed.jaxpr, closed.consts, arrays, see)

  _run_all(model, tokens_SxN, run)
  return list(found.values())


def _evaluated(jaxpr, constants, arrays, see) -> list:
  """The outputs of a trace; `see` is shown all numbers with a point on the way, by the operation that made them."""
  values = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, arrays, strict=True))
  read = lambda atom: atom.val if isinstance(atom, jax_core.Literal) else values[atom]
  for eqn in jaxpr.eqns:
    inputs = [read(atom) for atom in eqn.invars]
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    if inner is not None:
      outputs = _evaluated(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, see)
    else:
      outputs = eqn.primitive.bind(*inputs, **eqn.params)
      outputs = outputs if eqn.primitive.multiple_results else [outputs]
      for output in outputs:
        if output.dtype.kind == "f":
          see(eqn.primitive.name, output)
    values |= zip(eqn.outvars, outputs, strict=True)
  return [read(atom) for atom in jaxpr.outvars]


def check(ranges: list[Range]) -> Range:
  """The tightest of some ranges.

  Raises:
    UserError: where MARGIN times an intermediate's range does not fit its ring.
  """
  worst = min(ranges, key=lambda r: r.spare_bits)
  if worst.largest * MARGIN > worst.limit or not math.isfinite(worst.largest):
    raise UserError(
      f"{worst.place} reaches {worst.largest:.3g}: {MARGIN:.0f} times that must stay below "
      f"{worst.limit:.3g}, or fixed point overflows; train with weight decay or clipping, or keep more FFNs "
      "(--transforms=condition_bound=100)"
    )
  return worst


def _run_all(model: prepare.Model, tokens_SxN: np.ndarray, run) -> None:
  length = tokens_SxN.shape[1]
  program = build(model.spec, length, every_position=True)
  weights = server_inputs(model.weights, length)
  for tokens_N in tokens_SxN:
    run_plain(program, weights | client_inputs(model.spec, tokens_N), run)
