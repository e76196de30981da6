"""What one inference costs, from a config alone: bytes, rounds and latency, without running anything.

The model's own steps are traced on shapes (`count`), and each operation on secrets costs what `calibrate` measured.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math

from entropy_attn import config as config_lib
from entropy_attn.config import architecture_name
from entropy_attn.private.price import count
from entropy_attn.private.price import protocols as protocols_lib
from entropy_attn.private.price.account import grouped
from entropy_attn.private.price.lines import LINES, latency
from entropy_attn.private.program import build, ops, squares, types
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program.types import SECRET, SHARED, WIDE, Variable

THREADS = 2  # of each party, by which the engine's keys are counted
_FIELDS = ("bytes", "rounds", "seconds")


def predict(spec: spec_lib.Spec, length: int, *, threads: int = THREADS, **options) -> dict:
  """What one inference costs.

  Args:
    length: new tokens.
    threads: of each party.
    options: of `build.build`.

  Returns:
    total_bytes (both ways), rounds, seconds of computation, and by_operation and by_layer, as a profile has them.

  Raises:
    UserError: for more positions than the model has.
  """
  settings = spec_lib.Settings.of(spec)
  setting = "cheap" if settings.lsb_error else "stock"
  constants = protocols_lib.calibration()
  protocols = {ring: protocols_lib.Protocols(constants[f"{setting}/{ring}"]) for ring in _rings(setting, constants)}
  built = build.build(spec, length, **options)
  variables, known, rows = dict(built.inputs), {}, []
  used = {step.ring for step in built.steps}
  rows.append(_row("setup", "setup", _shares(build.set_up(threads, used).inputs.values())))
  for ring in used:
    rows.append(_row("setup", "setup", protocols[ring].rated("set up", (1, threads, 0))))
  operations = ops.engine_of(spec)
  for step in built.steps:
    reads = tuple(variables[name] for name in step.reads)
    key = (step.operation, reads, step.ring)
    if key not in known:
      known[key] = count.step_cost(step, reads, operations, protocols[step.ring], settings)
    cost, shapes = known[key]
    rows.append(_row(types.layer_name(step), step.kind, cost))
    variables |= {name: Variable(a.shape, SECRET, a.dtype.name) for name, a in zip(step.writes, shapes, strict=True)}
  shared = [v for v in built.inputs.values() if v.owner == SHARED]
  rows.append(_row("embedding", "embedding", _shares(shared)))
  rows.append(_row("head", "reveal", _shares([variables[name] for name in built.outputs])))
  total = {name: sum(row[name] for row in rows) for name in ("bytes", "rounds", "seconds")}
  return {
    "total_bytes": total["bytes"],
    "rounds": total["rounds"],
    "seconds": total["seconds"],
    "by_operation": grouped(rows, "operation", _FIELDS),
    "by_layer": grouped(rows, "layer", _FIELDS),
  }


def of_config(config, transforms: spec_lib.Transforms, length: int | None = None, **options) -> dict:
  """What one inference of a config's model costs, if every FFN that may vanish does.

  Args:
    length: of the prompt; None: the model's context length.
    options: of `build.build`.

  Returns:
    architecture, length, transforms, and what `predict` returns.

  Raises:
    UserError: where transforms contradict the architecture.
  """
  m = config.model
  exponential = squares.exponential(squares.ERROR, -12.0)  # no text tells how far scores reach
  spec = spec_lib.of_config(m, transforms, (exponential,) * m.num_layers)
  length = length or m.context_length
  return {
    "architecture": architecture_name(config),
    "length": length,
    "transforms": dataclasses.asdict(transforms),
    **predict(spec, length, **options),
  }


def of_profile(profile: Mapping) -> dict:
  """What a profiled inference was to cost, from its config and its choices alone: as `predict` says.

  Args:
    profile: of `parties.measure`, or what JSON kept of it.
  """
  config = config_lib.base()
  config.model.update(profile["config"]["model"])
  choices = zip(profile["squares"], profile["lowest_exponents"], strict=True)
  exponentials = tuple(squares.with_squares(*choice) for choice in choices if choice[0] is not None)
  spec = spec_lib.of_config(config.model, spec_lib.Transforms(**profile["transforms"]), exponentials)
  return predict(spec, profile["length"], threads=profile["threads"])


def summary_of(config) -> dict:
  """The prediction that stands in a training run's summary.

  Returns:
    total_bytes, rounds, seconds, length, and latency_seconds over each of LINES.
  """
  found = of_config(config, spec_lib.transforms_for(config.model))
  kept = {name: found[name] for name in ("total_bytes", "rounds", "seconds", "length")}
  return kept | {"latency_seconds": {name: latency(found, *line) for name, line in LINES.items()}}


def _shares(variables: Iterable[Variable]) -> protocols_lib.Cost:
  """The cost of one party's shares of some variables, sent to the other at once."""
  return protocols_lib.Cost(bytes=sum(math.prod(v.shape) for v in variables) * WIDE / 8, rounds=0.5)


def _rings(setting: str, constants: Mapping) -> list[int]:
  return [int(name.split("/")[1]) for name in constants if name.startswith(f"{setting}/")]


def _row(layer: str, operation: str, cost: protocols_lib.Cost) -> dict:
  return {"layer": layer, "operation": operation, **dataclasses.asdict(cost)}
