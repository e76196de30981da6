"""Fits the chains of squares that stand for exponentials and GELU's tail, into program/squares.json.

    python -m entropy_attn.private.approximate     (two minutes)

What is fitted is fixed: the table is the same on every machine, but for rounding.
"""

from entropy_attn import cli, paths


def define_flags() -> None:
  """Defines no flags."""


def main() -> None:
  """Fits all, and writes the table."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  import dataclasses
  import json
  import math

  import numpy as np

  from entropy_attn.private.program import squares
  from entropy_attn.private.program.fits import fit_chain, starting_points
  from entropy_attn.progress import say

  weight = lambda x: 1 / (np.exp(x) + squares.SOFTEN)
  tail = np.vectorize(lambda x: x * 0.5 * math.erfc(x / math.sqrt(2)))
  end, fits = squares.GELU_END, []
  for low in squares.LOWS:
    for k in squares.COUNTS:
      starts = starting_points(low, 0.0, k, [[2.0**-k, 1.0, *[0.0] * k]])
      fits.append(fit_chain(np.exp, weight, low, 0.0, k, affine=False, starts=starts))
      say(f"exp on [{low:g}, 0], {k} squares: error {fits[-1].error:.1e}")
  gelu = fit_chain(tail, np.ones_like, 0.0, end, 3, affine=True, starts=starting_points(0.0, end, 3))
  found = {"exponential": fits, "gelu_tail": [gelu]}
  lines = {name: [dataclasses.asdict(chain) for chain in chains] for name, chains in found.items()}
  paths.write_text(squares.TABLE, json.dumps(lines, indent=1) + "\n", "the table")
  print(f"GELU's tail, 3 squares: error {gelu.error:.1e}")


if __name__ == "__main__":
  cli.run(define_flags, main)
