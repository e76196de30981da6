"""The perplexity of a model in fixed point next to its own, on the run's own evaluation text.

    python -m entropy_attn.private.perplexity --checkpoint=runs/quickstart

By default one process computes as two parties would, in the same rings and with the same cuts (--how=reference);
--how=parties runs the real protocol, about as fast as private.profile for each sequence.
"""

import math

from absl import flags
import numpy as np
from tqdm import tqdm

from entropy_attn import cli
from entropy_attn.config import architecture_name
from entropy_attn.errors import UserError, check_choice
from entropy_attn.private import build, engine, party, prepare, profile, ranges, source
from entropy_attn.private import spec as spec_lib
from entropy_attn.private.machine import Reference
from entropy_attn.private.program import CLIENT

HOW = ("reference", "parties")


def perplexity(
  model: source.Source,
  transforms: spec_lib.Transforms,
  *,
  sequences: int,
  how: str = "reference",
  error: float = ranges.ERROR,
  threads: int = 0,
) -> dict:
  """Perplexities over some validation sequences: exact, and in fixed point.

  Args:
    sequences: how many, each of the model's context length.
    how: see the module.

  Returns:
    perplexity, private_perplexity, their relative difference, same_next_token (the part of positions whose likeliest
    token is the same), and the largest error of a logit.

  Raises:
    UserError: for what the user can mend.
    party.Impossible: where a result is not to be trusted.
  """
  check_choice("--how", how, HOW)
  engine.core()
  length = model.config.model.context_length
  private, _ = profile.private_model(model, transforms, error, length)
  tokens_SxN = model.sequences(sequences, length)
  if how == "reference":
    found = reference_logits(private, tokens_SxN)
  else:
    found = profile.two_processes(private, tokens_SxN, profile.Link(), threads, True, every_position=True)
    found = np.stack(found[CLIENT]["logits"])
  exact = np.stack([np.asarray(profile.exact_logits(model, transforms, t, every_position=True)) for t in tokens_SxN])
  loss, private_loss = (mean_loss(logits, tokens_SxN) for logits in (exact, found))
  return {
    "architecture": architecture_name(model.config),
    "model": model.description,
    "how": how,
    "sequences": len(tokens_SxN),
    "tokens": int(tokens_SxN[:, 1:].size),
    "perplexity": math.exp(loss),
    "private_perplexity": math.exp(private_loss),
    "relative_difference": math.exp(private_loss - loss) - 1,
    "same_next_token": float(np.mean(exact.argmax(-1) == found.argmax(-1))),
    "max_abs_error": float(np.max(np.abs(exact - found))),
    "squares": [len(layer.exponential.offsets) if layer.exponential else None for layer in private.spec.layers],
  }


def reference_logits(private: prepare.Model, tokens_SxN: np.ndarray) -> np.ndarray:
  """Logits [S, N, V] in fixed point, by one process.

  Raises:
    party.Impossible: where rows of attention have impossible sums.
  """
  N = tokens_SxN.shape[1]
  built = build.build(private.spec, N, every_position=True)
  codes = engine.Compiler(private.spec).program(built)
  weights = build.server_inputs(private.weights, N)
  logits = []
  for tokens in tqdm(tokens_SxN, desc="in fixed point", unit="sequence", leave=False):
    machine = Reference(engine.Settings.of(private.spec))
    inputs = weights | build.client_inputs(private.spec, tokens)
    for name, variable in built.inputs.items():
      machine.give(name, variable, inputs[name])
    for step, code in zip(built.steps, codes, strict=True):
      machine.run(step, code)
    if "impossible" in built.outputs:
      party.check_possible(int(machine.value("impossible")))
    logits.append(machine.value("logits"))
  return np.stack(logits)


def mean_loss(logits_SxNxV: np.ndarray, tokens_SxN: np.ndarray) -> float:
  """Mean negative log-likelihood of each next token, nats."""
  logits = np.asarray(logits_SxNxV[:, :-1], np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  hit = np.take_along_axis(logits, tokens_SxN[:, 1:, None], axis=-1)[..., 0]
  return float(np.mean(np.log(np.sum(np.exp(logits), axis=-1)) - hit))


if __name__ == "__main__":
  flags_of_source = source.define_flags()
  transforms_flag = flags.DEFINE_string("transforms", "", "See private.profile.")
  sequences_flag = flags.DEFINE_integer("sequences", 8, "Validation sequences.", lower_bound=1)
  how_flag = flags.DEFINE_string("how", "reference", "reference or parties.")
  error_flag = flags.DEFINE_float("error", ranges.ERROR, "Of each layer's exponential: see private.approximate.")
  json_flag = flags.DEFINE_string("json", None, "Also write the figures to this file.")

  def main() -> None:
    model = source.load(flags_of_source)
    transforms = spec_lib.transforms_for(model.config.model, transforms_flag.value)
    try:
      result = perplexity(model, transforms, sequences=sequences_flag.value, how=how_flag.value, error=error_flag.value)
    except party.Impossible as error:
      raise UserError(str(error)) from error
    print(f"{result['model']}: {result['tokens']:,} tokens")
    print(f"perplexity {result['perplexity']:.4f}; in fixed point {result['private_perplexity']:.4f} "
          f"({100 * result['relative_difference']:+.3f} %)")  # fmt: skip
    print(f"the likeliest next token is the same at {100 * result['same_next_token']:.2f} % of positions; "
          f"largest error of a logit {result['max_abs_error']:.2g}")  # fmt: skip
    cli.write_json(json_flag.value, result)

  cli.run(main)
