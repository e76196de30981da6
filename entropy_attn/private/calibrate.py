"""Measures the engine's protocols, and writes what `price.protocols` knows of them: price/protocols.json.

    python -m entropy_attn.private.calibrate     (10 minutes on two cores, which nothing else should use)

What is measured is fixed; seconds are those of this machine.
"""

import json
import sys

from entropy_attn import cli
from entropy_attn.private.parties import calibration
from entropy_attn.private.price import protocols


def define_flags() -> None:
  """Defines no flags."""


def main() -> None:
  """Measures, and writes the table."""
  protocols.TABLE.write_text(json.dumps(calibration.constants(), indent=1) + "\n")
  print(f"wrote {protocols.TABLE}", file=sys.stderr)


if __name__ == "__main__":
  cli.run(define_flags, main)
