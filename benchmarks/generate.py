"""Tokens a second with the key/value cache, against a forward of all positions for each token: prints their ratio.

    python benchmarks/generate.py --checkpoint=runs/quickstart

Both are greedy, compiled before the clock starts, and give the same tokens.
"""

import functools
import statistics
import time

from absl import flags
import jax
import numpy as np

from entropy_attn import cli, decode, load
from entropy_attn.model import GPT

FLAGS = flags.FLAGS
PAIRS = 7


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_path("checkpoint", "runs/quickstart", "A run's folder.")
  cli.define_json()


def main() -> None:
  """Prints tokens a second of both, their ratio, and what loading and compiling took."""
  started = time.monotonic()
  model = load(FLAGS.checkpoint)
  loaded, prompt, context = time.monotonic() - started, [5], model.config.model.context_length
  decoder, plain = decode.Decoder(model), WithoutCache(model)
  compiling = decode.generate(decoder, prompt, context)["seconds"]["compile"]
  plain.generate(prompt, context)
  pairs, prompts = [], []
  for _ in range(PAIRS):  # in turns, so that a slow spell slows both
    cached = decode.generate(decoder, prompt, context)
    ids, rate = plain.generate(prompt, context)
    assert ids == cached["ids"]
    pairs.append((cached["tokens_per_second"], rate))
    prompts.append(cached["seconds"]["prompt"])
  found = {
    "load_seconds": loaded,
    "compile_seconds": compiling,
    "prompt_seconds": statistics.median(prompts),
    "tokens": len(ids),
    "tokens_per_second": statistics.median(cached for cached, _ in pairs),
    "tokens_per_second_without_cache": statistics.median(rate for _, rate in pairs),
    "ratio": statistics.median(cached / rate for cached, rate in pairs),
  }
  cli.write_json(found)
  for name, value in found.items():
    print(f"{name}: {value:,.4g}")


class WithoutCache:
  """A forward of all positions for each token, compiled once."""

  def __init__(self, model):
    self._variables = jax.device_put(model.variables)
    self._context = model.config.model.context_length
    self._forward = jax.jit(functools.partial(_forward, GPT(model.config)))

  def generate(self, prompt: list[int], tokens: int) -> tuple[list[int], float]:
    """The likeliest tokens, and how many of them a second came after the first."""
    ids = list(prompt)
    for i in range(tokens):
      if i <= 1:
        started = time.monotonic()
      padded_1xT = np.zeros((1, self._context), np.int32)
      padded_1xT[0, : len(ids)] = ids
      logits_V, _ = jax.device_get(self._forward(self._variables, padded_1xT, len(ids)))
      ids.append(int(np.argmax(logits_V)))
    return ids[len(prompt) :], (tokens - 1) / (time.monotonic() - started)


def _forward(gpt: GPT, variables, tokens_1xT, count):
  x_1xTxD, out = gpt.apply(variables, tokens_1xT, method="features")
  last_1x1xD = jax.lax.dynamic_slice_in_dim(x_1xTxD, count - 1, 1, axis=1)
  return gpt.apply(variables, last_1x1xD, method="logits")[0, 0], out["entropy"][:, 0, count - 1]


if __name__ == "__main__":
  cli.run(define_flags, main)
