"""Exact, bounded evaluation: the token-weighted loss, and each head's entropy on a fixed set."""

import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from entropy_attn import checkpoint, sharding, summary
from entropy_attn import entropy as entropy_lib
from entropy_attn.config import causal_ceiling
from entropy_attn.data import pipeline
from entropy_attn.model import GPT
from entropy_attn.optimizer import make_optimizer
from entropy_attn.train_step import init_state


def make_eval_step(config: ConfigDict, mesh):
  """A jitted (variables, batch) → sums over that batch; regulariser and dropout are off."""
  model = GPT(config)

  def eval_step(variables, batch):
    with sharding.RULES.logical_axis_rules():
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


def evaluate(eval_step, variables, dataset: pipeline.Dataset, config: ConfigDict, mesh) -> dict:
  """Runs eval_step over the validation split, or config.eval.batches of it.

  Returns:
    loss (nats a token), perplexity, tokens, sequences, entropy_LxH (nats, mean over sequences and all queries),
    head_shares against max_entropy (see `bins_max`) and against the largest observed, nonfinite_rows_L.
  """
  index, count = sharding.process_shard(mesh)
  batches = pipeline.eval_batches(dataset, config, shard_index=index, shard_count=count)
  total = pipeline.eval_batch_count(dataset, config)
  sums = None
  bar = tqdm(batches, total=total, desc="evaluate", unit="batch", leave=False, disable=jax.process_index() > 0)
  for batch in bar:
    part = jax.device_get(eval_step(variables, sharding.put_batch(batch, mesh)))
    part = {name: np.asarray(value, np.float64) for name, value in part.items()}
    sums = part if sums is None else {name: sums[name] + part[name] for name in sums}
  loss = float(sums["nll"] / sums["tokens"])
  entropy_LxH = sums["entropy_LxH"] / sums["sequences"]
  return {
    "loss": loss,
    "perplexity": math.exp(loss) if loss < 700 else math.inf,
    "tokens": int(sums["tokens"]),
    "sequences": int(sums["sequences"]),
    "nonfinite_rows_L": sums["nonfinite_rows_L"].astype(int),
    **head_statistics(entropy_LxH, config),
  }


def evaluate_checkpoint(config: ConfigDict, workdir: pathlib.Path, step: int | None) -> dict:
  """Evaluates a run's newest readable checkpoint, or that of `step`, on the config's data; see summary.summarize.

  Raises:
    UserError: if there is none, or it is of another model than the config's.
  """
  started = time.monotonic()
  saved = checkpoint.check_same_model(workdir, config)
  mesh = sharding.make_mesh(config)
  dataset = pipeline.prepare(config)
  saved.model.update({name: config.model[name] for name in ("dtype", "attention", "remat")})
  abstract = jax.eval_shape(functools.partial(init_state, saved, make_optimizer(saved)))
  shapes = sharding.with_shardings(abstract, sharding.state_shardings(abstract, mesh))
  with jax.set_mesh(mesh):
    state, found = checkpoint.restore_for_evaluation(workdir, shapes, step)
    result = evaluate(make_eval_step(saved, mesh), state.variables, dataset, config, mesh)
  run = {"status": "evaluated", "step": found, "seconds": time.monotonic() - started}
  return summary.summarize(config, result, run)


def head_statistics(entropy_LxH: np.ndarray, config: ConfigDict) -> dict:
  """The entropies with their layer means, and head shares against one Max and the observed one."""
  return {
    "entropy_LxH": np.asarray(entropy_LxH),
    "entropy_L": np.mean(entropy_LxH, axis=1),
    "max_entropy": bins_max(config),
    "head_shares": np.asarray(entropy_lib.head_shares(entropy_LxH, bins_max(config))),
    "head_shares_observed_max": np.asarray(entropy_lib.head_shares(entropy_LxH)),
  }


def bins_max(config: ConfigDict) -> float:
  """The Max of the head bins: eval.max_entropy, else the causal ceiling, one number for all models of one T."""
  chosen = config.eval.max_entropy
  return causal_ceiling(config.model.context_length) if chosen is None else chosen
