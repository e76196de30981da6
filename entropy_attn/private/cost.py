"""The price of private inference from a config alone: bytes, rounds and latency, without running anything.

    python -m entropy_attn.private.cost --config=configs/codeparrot_scfuffn.py

The model's own steps are traced on shapes (`count`), and each operation on secrets costs what `calibrate` measured.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import pathlib

from absl import flags

from entropy_attn import cli
from entropy_attn import config as config_lib
from entropy_attn.config import architecture_name
from entropy_attn.errors import UserError
from entropy_attn.private import approximate, build, count, primitives, program, ranges
from entropy_attn.private import spec as spec_lib
from entropy_attn.private.engine import Settings, math_of
from entropy_attn.private.program import SECRET, SHARED, WIDE, Variable
from entropy_attn.private.show import grouped, table

LINES = {"LAN": (1000.0, 0.5), "WAN": (100.0, 80.0)}  # Mbit/s, and round-trip time in ms
THREADS = 2  # of each party, by which the engine's keys are counted
_FIELDS = ("bytes", "rounds", "seconds")


def predict(spec: spec_lib.Spec, length: int, *, threads: int = THREADS, **options) -> dict:
  """What one inference costs.

  Args:
    length: new tokens.
    threads: of each party.
    options: of `build.build`.

  Returns:
    total_bytes, rounds, seconds of computation, and by_operation and by_layer, as `profile` has them.
  """
  settings = Settings.of(spec)
  setting = "cheap" if settings.lsb_error else "stock"
  constants = primitives.calibration()
  protocols = {ring: primitives.Protocols(constants[f"{setting}/{ring}"]) for ring in _rings(setting, constants)}
  built = build.build(spec, length, **options)
  variables, known, rows = dict(built.inputs), {}, []
  used = {step.ring for step in built.steps}
  rows.append(_row("setup", "setup", _shares(build.set_up(threads, used).inputs.values())))
  for ring in used:
    rows.append(_row("setup", "setup", protocols[ring].rated("set up", (1, threads, 0))))
  operations = math_of(spec)
  for step in built.steps:
    reads = tuple(variables[name] for name in step.reads)
    key = (step.function, step.options, reads, step.ring)
    if key not in known:
      known[key] = count.step_cost(step, reads, operations, protocols[step.ring], settings)
    cost, shapes = known[key]
    rows.append(_row(program.layer_name(step), step.kind, cost))
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

  Raises:
    UserError: where transforms contradict the architecture.
  """
  m = config.model
  exponential = approximate.exponential(ranges.ERROR, -12.0)  # no text tells how far scores reach
  spec = spec_lib.of_config(m, transforms, (exponential,) * m.num_layers)
  length = length or m.context_length
  return {
    "architecture": architecture_name(config),
    "length": length,
    "transforms": dataclasses.asdict(transforms),
    **predict(spec, length, **options),
  }


def of_profile(profile: Mapping) -> dict:
  """What a profiled inference was to cost, from its config and its choices alone."""
  config = config_lib.base()
  config.model.update(profile["config"]["model"])
  choices = zip(profile["squares"], profile["lowest_exponents"], strict=True)
  exponentials = tuple(approximate.with_squares(*choice) for choice in choices if choice[0] is not None)
  spec = spec_lib.of_config(config.model, spec_lib.Transforms(**profile["transforms"]), exponentials)
  return predict(spec, profile["length"], threads=profile["threads"])


def add_to_summary(folder: pathlib.Path, config, result: dict) -> dict:
  """A training run's summary with its predicted cost of private inference, written to its folder and returned."""
  found = of_config(config, spec_lib.transforms_for(config.model))
  kept = {name: found[name] for name in ("total_bytes", "rounds", "seconds", "length")}
  lines = {name: latency(found, *line) for name, line in LINES.items()}
  result = result | {"private_inference": kept | {"latency_seconds": lines}}
  (folder / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
  return result


def latency(cost: Mapping, megabits: float, rtt_ms: float, compute: float = 1.0) -> float:
  """Seconds over a line: all bytes one after the other, every round, and the computation.

  Args:
    cost: of `predict`, or a profile.
    megabits: a second.
    compute: the computation's part of what it takes on the machine of the calibration.
  """
  return cost["total_bytes"] * 8e-6 / megabits + cost["rounds"] * rtt_ms * 1e-3 + cost["seconds"] * compute


def parse_line(text: str) -> tuple[float, float]:
  """LAN, WAN, or 'MBIT,RTT' as numbers.

  Raises:
    UserError: for anything else.
  """
  if text in LINES:
    return LINES[text]
  try:
    megabits, rtt = map(float, text.split(","))
    if megabits > 0 and rtt >= 0:
      return megabits, rtt
  except ValueError:
    pass
  raise UserError(f"--line={text!r} is neither {', '.join(LINES)} nor MBIT,RTT such as 300,20")


def text(result: Mapping, lines: Mapping[str, tuple[float, float]]) -> str:
  """The prediction as tables, with result's latency_seconds of each line."""
  rows = [
    f"{name} ({megabits:g} Mbit/s, {rtt:g} ms): {result['latency_seconds'][name]:,.0f} s"
    for name, (megabits, rtt) in lines.items()
  ]
  return "\n\n".join(
    [
      f"{result['architecture']}, {result['length']} tokens, predicted",
      table("operation", result["by_operation"], by_size=True),
      table("layer", result["by_layer"]),
      "\n".join(rows) + "\nwith the computation of two cores (--compute); keys are made once a session",
    ]
  )


def _shares(variables: Iterable[Variable]) -> primitives.Cost:
  """Of one party's shares, sent to the other at once."""
  return primitives.Cost(bytes=sum(math.prod(v.shape) for v in variables) * WIDE / 8, rounds=0.5)


def _rings(setting: str, constants: Mapping) -> list[int]:
  return [int(name.split("/")[1]) for name in constants if name.startswith(f"{setting}/")]


def _row(layer: str, operation: str, cost: primitives.Cost) -> dict:
  return {"layer": layer, "operation": operation, **dataclasses.asdict(cost)}


if __name__ == "__main__":
  config_flag = cli.define_config()
  transforms_flag = flags.DEFINE_string("transforms", "", "See private.profile.")
  length_flag = flags.DEFINE_integer("length", None, "Tokens of the prompt; default: the model's context length.")
  line_flag = flags.DEFINE_multi_string("line", list(LINES), "LAN, WAN or MBIT,RTT; may be given several times.")
  compute_flag = flags.DEFINE_float(
    "compute", 1.0, "Of the computation's seconds on two cores, the part that another machine takes.", lower_bound=0.0
  )
  json_flag = flags.DEFINE_string("json", None, "Also write the figures to this file.")

  def main() -> None:
    config = cli.load_config(config_flag)
    lines = {name: parse_line(name) for name in line_flag.value}
    result = of_config(config, spec_lib.transforms_for(config.model, transforms_flag.value), length_flag.value)
    result["latency_seconds"] = {name: latency(result, *line, compute_flag.value) for name, line in lines.items()}
    print(text(result, lines))
    cli.write_json(json_flag.value, result)

  cli.run(main)
