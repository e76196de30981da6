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
from entropy_attn.progress import bar
from entropy_attn.run import checkpoint, folder
from entropy_attn.train_step import abstract_state


class Evaluator:
  """The validation split of a config, or config.eval.batches of it, evaluated on a mesh.

  Args:
    config: whose data are read.
    model: the model; None: the config's own.
  """

  def __init__(self, config: ConfigDict, dataset: pipeline.Dataset, mesh, model: GPT | None = None):
    self._config, self._dataset, self._mesh = config, dataset, mesh
    self._step = _jitted_step(GPT(config) if model is None else model, mesh)
    self._max_entropy = config_lib.bins_max(config)

  def __call__(self, variables) -> dict:
    """Evaluates variables of the model.

    Returns:
      loss (nats a token), perplexity, tokens, sequences, nonfinite_rows_L, and the `entropy.head_statistics` of
      entropy_LxH (nats, mean over sequences and all queries).
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
    return {
      "loss": loss,
      "perplexity": math.exp(loss) if loss < 700 else math.inf,
      "tokens": int(sums["tokens"]),
      "sequences": int(sums["sequences"]),
      "nonfinite_rows_L": sums["nonfinite_rows_L"].astype(int),
      **entropy_lib.head_statistics(sums["entropy_LxH"] / sums["sequences"], self._max_entropy),
    }


def _jitted_step(model: GPT, mesh):
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
      "sequences": rows,
      "entropy_LxH": entropy_lib.head_means(out["entropy"], real_B) * rows,
      "nonfinite_rows_L": jnp.sum(nonfinite_LxB * real_B, axis=1),
    }

  return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def evaluate_checkpoint(config: ConfigDict, workdir: pathlib.Path, step: int | None) -> dict:
  """Evaluates a run's newest readable checkpoint, or that of `step`, on the config's data.

  Returns:
    status, step, seconds, and what `Evaluator` gives.

  Raises:
    UserError: if there is none, or it is of another model than the config's.
  """
  started = time.monotonic()
  saved = folder.check_same_model(workdir, config)
  saved.model.update({name: config.model[name] for name in ("dtype", "attention", "remat")})
  mesh = sharding.make_mesh(config)
  dataset = pipeline.prepare(config)
  with jax.set_mesh(mesh):
    variables, found = checkpoint.restore_variables(workdir, abstract_state(saved, mesh), step)
    evaluation = Evaluator(config, dataset, mesh, GPT(saved))(variables)
  return evaluation | {"status": "evaluated", "step": found, "seconds": time.monotonic() - started}
