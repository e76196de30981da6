"""Measures the engine's protocols, and writes what `price.protocols` knows of them: price/protocols.json.

    python -m entropy_attn.private.calibrate     (10 minutes on two cores, which nothing else should use)

What is measured is fixed; seconds are those of this machine.
"""

import json
import sys

from entropy_attn import cli, paths
from entropy_attn.private.price import protocols


def define_flags() -> None:
  """Defines no flags."""


def main() -> None:
  """Measures, and writes the table."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import calibration

  paths.write_text(protocols.TABLE, json.dumps(calibration.constants(), indent=1) + "\n", "the table")
  print(f"wrote {protocols.TABLE}", file=sys.stderr)


if __name__ == "__main__":
  cli.run(define_flags, main)
