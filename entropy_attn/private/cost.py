"""The price of private inference from a config alone: bytes, rounds and latency, without running anything.

    python -m entropy_attn.private.cost --config=configs/codeparrot_scfuffn.py

It needs no engine; `price.predict` is what it calls.
"""

from collections.abc import Mapping

from absl import flags as absl_flags

from entropy_attn import cli
from entropy_attn.private import flags
from entropy_attn.private.price.account import table
from entropy_attn.private.price.lines import LINES, latency, parse

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_config()
  flags.define_transforms()
  flags.define_length()
  absl_flags.DEFINE_multi_string("line", list(LINES), "LAN, WAN or MBIT,RTT; may be given several times.")
  absl_flags.DEFINE_float(
    "compute", 1.0, "Of the computation's seconds on two cores, the part that another machine takes.", lower_bound=0.0
  )
  cli.define_json()
  cli.add_check(lambda: [parse(line) for line in FLAGS.line])


def main() -> None:
  """Prints the prediction."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.price.predict import of_config

  config = cli.load_config()
  lines = {name: parse(name) for name in FLAGS.line}
  result = of_config(config, flags.transforms_of(config.model), FLAGS.length)
  result["latency_seconds"] = {name: latency(result, *line, FLAGS.compute) for name, line in lines.items()}
  cli.write_json(result)
  print(text(result, lines))


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


if __name__ == "__main__":
  cli.run(define_flags, main)
