"""How often a private inference goes wrong: many of the tests' small models, each compared with the model in the clear.

    python -m benchmarks.private.reliability --inferences=2000 --out=benchmarks/private/reliability.jsonl

Pairs of processes, 40 inferences a pair, each with material made right before it as `serve` and `generate` make it; a
line of the file a pair. The same command goes on with an interrupted one. Each inference has other random tokens and
its logits are compared: one that is off by more than BOUND, or that the check refuses, is a failure.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.parties.pair import two_processes
from entropy_attn.private.program import squares
from entropy_attn.private.program.spec import transforms_for
from entropy_attn.private.program.types import CLIENT, SERVER
from entropy_attn.private.program.weights import fold
from tests.private.models import ARCHITECTURES, logits_of, make

MODELS = ("SM(t_i)+ScFuFFN", "SM+ScFuFFN", "SM+LN+R", "SM+LN+G")
BATCH = 40
BOUND = 0.25  # of a logit, those of these models reach about 3; approximations are off by up to 0.03


def one_pair(name: str, seed: int) -> dict:
  """BATCH inferences of a model between two processes; what went wrong."""
  config, variables = make(ARCHITECTURES[name])
  transforms = transforms_for(config.model)
  exponentials = (squares.exponential(5e-3, -16.0),) * config.model.num_layers
  private = fold(variables, config.model, transforms, exponentials)
  length = config.model.context_length
  tokens_SxN = np.random.default_rng(seed).integers(config.model.vocab_size, size=(BATCH, length), dtype=np.int32)
  started = time.monotonic()
  result = {"model": name, "seed": seed, "inferences": BATCH}
  try:
    found = two_processes(private, tokens_SxN, threads=2, show=False, offline=True)
  except UserError as error:
    return result | {"failed": str(error), "seconds": time.monotonic() - started}
  errors = [
    float(np.max(np.abs(np.asarray(logits) - logits_of(config, variables, tokens_N)[-1])))
    for logits, tokens_N in zip(found[CLIENT]["logits"], tokens_SxN, strict=True)
  ]
  return result | {
    "wrong": sum(error > BOUND for error in errors),
    "largest_error": max(errors),
    "remade": found[SERVER]["remade"],
    "seconds": time.monotonic() - started,
  }


def main() -> None:
  """Runs what is missing, pair by pair, and prints the sum."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--inferences", type=int, default=2000)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  flags = parser.parse_args()
  done = [json.loads(line) for line in flags.out.read_text().splitlines()] if flags.out.exists() else []
  for i in range(len(done), -(-flags.inferences // BATCH)):
    done.append(one_pair(MODELS[i % len(MODELS)], seed=i))
    with flags.out.open("a") as out:
      out.write(json.dumps(done[-1]) + "\n")
    print(done[-1], flush=True)
  inferences = sum(pair["inferences"] for pair in done)
  failed = sum(pair.get("wrong", pair["inferences"]) for pair in done)
  remade = sum(pair.get("remade", 0) for pair in done)
  largest = max(pair.get("largest_error", np.inf) for pair in done)
  print(
    f"{inferences:,} inferences, {failed} failed, {remade} products of masks made anew, largest error {largest:.2g}"
  )


if __name__ == "__main__":
  main()
