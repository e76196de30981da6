"""The optimizer: AdamW, or Muon for the blocks' matrices, with warm-up, decay of matrices alone and clipping."""

import math

import jax
from ml_collections import ConfigDict
import optax
import optax.contrib

# The last name on the path of what decays; biases, gains, alpha, beta, temperatures and thresholds do not.
_DECAYED = ("kernel", "token_embedding", "position_embedding", "head")


NAMES = ("adamw", "muon")
# Of Muon's updates, at any shape: about what AdamW's have, so that its rate and decay carry over (arXiv:2502.16982).
_MUON_RMS = 0.2

# The descent from a first rate to a last one over some steps, by config.optimizer.schedule.
SCHEDULES = {
  "linear": optax.linear_schedule,
  "cosine": lambda first, last, steps: optax.cosine_decay_schedule(first, steps, alpha=last / first if first else 0.0),
}


def make_schedule(config: ConfigDict) -> optax.Schedule:
  """Linear warm-up from 0, then the descent to the final rate at train.steps."""
  c, steps = config.optimizer, config.train.steps
  warmup = min(c.warmup_steps or math.ceil(c.warmup_fraction * steps), steps)
  descent = SCHEDULES[c.schedule](c.learning_rate, c.final_learning_rate, max(steps - warmup, 1))
  # The first update already moves: rate(0) = peak / warmup, as rate(warmup − 1) = peak.
  rise = optax.linear_schedule(c.learning_rate / max(warmup, 1), c.learning_rate, max(warmup - 1, 1))
  return optax.join_schedules([rise, descent], [warmup])


def decay_mask(params):
  """True for each parameter that weight decay shrinks."""
  return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key) in _DECAYED, params)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Adam(W) as config.optimizer says (with weight_decay=0 it is Adam), or Muon with it."""
  c = config.optimizer
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
  adamw = optax.adamw(make_schedule(config), b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decay_mask)
  if c.name == "adamw":
    return optax.chain(clip, adamw)
  return optax.chain(clip, optax.partition({"muon": _muon(config), "adamw": adamw}, _which))


def _muon(config: ConfigDict) -> optax.GradientTransformation:
  """Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon): momentum, its singular values all set to about one.

  Its Nesterov momentum and five Newton-Schulz steps are as published. Updates are 0.2 sqrt(max(in, out)) times that
  and weights decay as AdamW's do (Liu et al., 2025, arXiv:2502.16982).
  """
  c, schedule = config.optimizer, make_schedule(config)
  orthogonal = optax.contrib.scale_by_muon(beta=c.muon_momentum, weight_dimension_numbers=_dimensions)
  sized = lambda update: update * (_MUON_RMS * max(update.shape[-2:]) ** 0.5)
  return optax.chain(
    orthogonal,
    optax.stateless(lambda updates, _: jax.tree.map(sized, updates)),
    optax.add_decayed_weights(c.weight_decay),
    optax.scale_by_learning_rate(lambda step: c.muon_rate * schedule(step)),
  )


def _which(params):
  """'muon' for the kernels of blocks, [L, in, out]; 'adamw' for all else: embeddings, head and what is no matrix."""
  of = lambda path, x: "muon" if path[-1].key == "kernel" and x.ndim == 3 else "adamw"
  return jax.tree_util.tree_map_with_path(of, params)


def _dimensions(kernels):
  """Kernels are stacked over layers, [L, in, out]: each layer's is a matrix of its own."""
  return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2), kernels)
