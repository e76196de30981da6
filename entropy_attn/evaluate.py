"""Exact, bounded evaluation: the token-weighted loss, and each head's entropy on a fixed set."""

import math
import pathlib
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import entropy as entropy_lib
from entropy_attn import sharding
from entropy_attn.data import pipeline
from entropy_attn.model import GPT
from entropy_attn.progress import bar, say
from entropy_attn.run import checkpoint, folder, text
from entropy_attn.train_step import abstract_state

# Fields that decide what an evaluation says of a checkpoint.
_WHAT_IS_EVALUATED = ("data.", "eval.", "model.")


class Evaluator:
  """The validation split of a config, or config.eval.batches of it, evaluated on a mesh.

  Args:
    config: whose data are read.
    model: the model; None: the config's own.
  """

  def __init__(self, config: ConfigDict, dataset: pipeline.Dataset, mesh, model: GPT | None = None):
    self._config, self._dataset, self._mesh = config, dataset, mesh
    self._step = _jitted_step(GPT(config) if model is None else model, mesh, _bytes(config, dataset))
    self._max_entropy = config_lib.bins_max(config)

  def __call__(self, variables) -> dict:
    """Evaluates variables of the model.

    Returns:
      loss (nats a token), perplexity, bits_per_byte (of the text that the predicted tokens stand for; None where their
      tokenizer does not tell their bytes), tokens, bytes, sequences, nonfinite_rows_L, and the
      `entropy.head_statistics` of entropy_LxH (nats, mean over sequences and all queries).
    """
    index, count = sharding.process_shard(self._mesh)
    batches = pipeline.eval_batches(self._dataset, self._config, shard_index=index, shard_count=count)
    total = pipeline.eval_batch_count(self._dataset, self._config)
    sums = None
    for batch in bar(batches, total=total, what="evaluate", unit="batch"):
      part = jax.device_get(self._step(variables, sharding.put_batch(batch, self._mesh)))
      part = {name: np.asarray(value, np.float64) for name, value in part.items()}
      sums = part if sums is None else {name: sums[name] + part[name] for name in sums}
    loss = float(sums["nll"] / sums["tokens"])
    size = int(sums["bytes"]) or None
    return {
      "loss": loss,
      "perplexity": math.exp(loss) if loss < 700 else math.inf,
      "bits_per_byte": size and float(sums["nll"]) / size / math.log(2),
      "tokens": int(sums["tokens"]),
      "bytes": size,
      "sequences": int(sums["sequences"]),
      "nonfinite_rows_L": sums["nonfinite_rows_L"].astype(int),
      **entropy_lib.head_statistics(sums["entropy_LxH"] / sums["sequences"], self._max_entropy),
    }


def _bytes(config: ConfigDict, dataset: pipeline.Dataset) -> np.ndarray:
  """int32 [V]: the bytes that each token stands for, or zeros where that is not known."""
  unknown = np.zeros(config.model.vocab_size, np.int32)
  return unknown if dataset.token_bytes is None else dataset.token_bytes


def _jitted_step(model: GPT, mesh, bytes_V: np.ndarray):
  """(variables, batch) → sums over that batch; regulariser and dropout are off."""

  def eval_step(variables, batch):
    nll, out = model.apply(variables, batch["inputs"], batch["targets"], batch["weights"], method="cross_entropy")
    weights_BxT = batch["weights"]
    real_B = jnp.any(weights_BxT > 0, axis=1).astype(jnp.float32)
    rows = jnp.sum(real_B)
    nonfinite_LxB = jnp.sum(~jnp.isfinite(out["entropy"]), axis=(2, 3))
    return {
      "nll": nll,
      "tokens": jnp.sum(weights_BxT),
      "bytes": jnp.sum(jnp.where(weights_BxT > 0, jnp.asarray(bytes_V)[batch["targets"]], 0)),
      "sequences": rows,
      "entropy_LxH": entropy_lib.head_means(out["entropy"], real_B) * rows,
      "nonfinite_rows_L": jnp.sum(nonfinite_LxB * real_B, axis=1),
    }

  return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def evaluate_checkpoint(config: ConfigDict, workdir: pathlib.Path, step: int | None) -> dict:
  """Evaluates a run's newest readable checkpoint, or that of `step`, on the config's data.

  Texts are read by the run's own tokenizer. What differs from the run's own evaluation is said.

  Returns:
    status, step, seconds, and what `Evaluator` gives.

  Raises:
    UserError: if there is none, or it is of another model than the config's.
  """
  started = time.monotonic()
  saved = folder.check_same_model(workdir, config)
  differs = config_lib.differences(saved, config)
  saved.model.update({name: config.model[name] for name in ("dtype", "attention", "remat")})
  mesh = sharding.make_mesh(config)
  dataset = pipeline.prepare(config, text.known_tokenizer(workdir))
  differs = [line for line in differs if line.startswith(_WHAT_IS_EVALUATED)] + text.compare(workdir, dataset)
  if differs:
    say(f"note: this is not the run's own evaluation, but with its own tokenizer: {'; '.join(differs)}")
  with jax.set_mesh(mesh):
    variables, found = checkpoint.restore_variables(workdir, abstract_state(saved, mesh), step)
    evaluation = Evaluator(config, dataset, mesh, GPT(saved))(variables)
  return evaluation | {"status": "evaluated", "step": found, "seconds": time.monotonic() - started}
