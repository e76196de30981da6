"""How far a model in fixed point is from the model itself: perplexities, likeliest tokens, logits."""

import math

import numpy as np

from entropy_attn.config import architecture_name
from entropy_attn.errors import check_choice
from entropy_attn.private.parties import check, engine
from entropy_attn.private.parties.machine import Reference
from entropy_attn.private.parties.measure import origin
from entropy_attn.private.parties.pair import two_processes
from entropy_attn.private.program import squares
from entropy_attn.private.program.build import build, client_inputs, server_inputs
from entropy_attn.private.program.prepare import prepare
from entropy_attn.private.program.spec import Settings, Transforms
from entropy_attn.private.program.types import CLIENT
from entropy_attn.private.program.weights import Model
from entropy_attn.progress import bar
from entropy_attn.run.pretrained import Pretrained

HOW = ("reference", "parties")


def perplexity(
  model: Pretrained,
  transforms: Transforms,
  *,
  sequences: int,
  how: str = "reference",
  error: float = squares.ERROR,
  threads: int = 0,
) -> dict:
  """Perplexities over some validation sequences: exact, and in fixed point.

  Args:
    sequences: how many, each of the model's context length.
    how: by one process that computes as two would (reference), or by the real protocol (parties).
    error: of each layer's exponential.
    threads: of each party; 0: all cores, at most 8.

  Returns:
    perplexity, private_perplexity, their relative difference, same_next_token (the part of positions whose likeliest
    token is the same), and the largest error of a logit.

  Raises:
    UserError: for what the user can mend; with how="parties", where a result is not to be trusted.
    check.Impossible: with how="reference", where a result is not to be trusted.
  """
  check_choice("--how", how, HOW)
  engine.core()
  length = model.config.model.context_length
  private, exact, _ = prepare(model, transforms, length, error)
  tokens_SxN = model.sequences(sequences, length)
  true_SxNxV = np.stack([np.asarray(exact.logits(tokens_N, every_position=True)) for tokens_N in tokens_SxN])
  del exact  # its weights, before the parties need the memory
  if how == "reference":
    found_SxNxV = reference_logits(private, tokens_SxN, origin(model))
  else:
    found = two_processes(private, tokens_SxN, threads=threads, origin=origin(model), every_position=True)
    found_SxNxV = np.stack(found[CLIENT]["logits"])
  loss, private_loss = (mean_loss(logits, tokens_SxN) for logits in (true_SxNxV, found_SxNxV))
  return {
    "architecture": architecture_name(model.config),
    "model": model.description,
    "how": how,
    "sequences": len(tokens_SxN),
    "tokens": int(tokens_SxN[:, 1:].size),
    "perplexity": math.exp(loss),
    "private_perplexity": math.exp(private_loss),
    "relative_difference": math.exp(private_loss - loss) - 1,
    "same_next_token": float(np.mean(true_SxNxV.argmax(-1) == found_SxNxV.argmax(-1))),
    "max_abs_error": float(np.max(np.abs(true_SxNxV - found_SxNxV))),
    "squares": [len(layer.exponential.offsets) if layer.exponential else None for layer in private.spec.layers],
  }


def reference_logits(private: Model, tokens_SxN: np.ndarray, origin: str = "") -> np.ndarray:
  """Logits [S, N, V] in fixed point, by one process.

  Args:
    origin: where the sequences come from, for the error that says that a result cannot be.

  Raises:
    check.Impossible: where rows of attention have impossible sums, after all sequences were run.
  """
  N = tokens_SxN.shape[1]
  built, compiler = build(private.spec, N, every_position=True), engine.Compiler(private.spec)
  codes = compiler.program(built)
  settings = Settings.of(private.spec)
  digest = engine.digest(private.spec, settings, codes)
  weights = server_inputs(private.weights, N)
  results, failed, how = [], {}, "one process in fixed point"
  for i, tokens_N in enumerate(bar(tokens_SxN, what="in fixed point", unit="sequence")):
    machine = Reference(settings)
    inputs = weights | client_inputs(private.spec, tokens_N)
    for name, variable in built.inputs.items():
      machine.give(name, variable, inputs[name])
    for step, code in zip(built.steps, codes, strict=True):
      machine.run(step, code)
    logits = machine.value("logits")
    rows = int(machine.value("impossible")) if "impossible" in built.outputs else 0
    if rows:
      facts = {"digest": digest, "settings": settings, "how": how}
      failed[i] = check.Impossible(rows, check.circumstances(private.spec, tokens_N, logits, **facts))
    results.append(logits)
  check.check_sequences(failed, len(tokens_SxN), origin)
  return np.stack(results)


def mean_loss(logits_SxNxV: np.ndarray, tokens_SxN: np.ndarray) -> float:
  """The mean negative log-likelihood of each next token, nats."""
  logits = np.asarray(logits_SxNxV[:, :-1], np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  hit = np.take_along_axis(logits, tokens_SxN[:, 1:, None], axis=-1)[..., 0]
  return float(np.mean(np.log(np.sum(np.exp(logits), axis=-1)) - hit))
