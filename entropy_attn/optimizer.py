"""The optimizer: AdamW with warm-up, decay of matrices alone, and global-norm clipping."""

import math

import jax
from ml_collections import ConfigDict
import optax

# The last name on the path of what decays; biases, gains, alpha, beta, temperatures and thresholds do not.
_DECAYED = ("kernel", "token_embedding", "position_embedding", "head")


def make_schedule(config: ConfigDict) -> optax.Schedule:
  """Linear warm-up from 0, then a linear or cosine descent to the final rate at train.steps."""
  c, steps = config.optimizer, config.train.steps
  warmup = min(c.warmup_steps or math.ceil(c.warmup_fraction * steps), steps)
  rest = max(steps - warmup, 1)
  if c.schedule == "linear":
    descent = optax.linear_schedule(c.learning_rate, c.final_learning_rate, rest)
  else:
    least = c.final_learning_rate / c.learning_rate if c.learning_rate else 0.0
    descent = optax.cosine_decay_schedule(c.learning_rate, rest, alpha=least)
  # The first update already moves: rate(0) = peak / warmup, as rate(warmup − 1) = peak.
  rise = optax.linear_schedule(c.learning_rate / max(warmup, 1), c.learning_rate, max(warmup - 1, 1))
  return optax.join_schedules([rise, descent], [warmup])


def decay_mask(params):
  """True for each parameter that weight decay shrinks."""
  return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key) in _DECAYED, params)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Adam(W) as config.optimizer says; with weight_decay=0 it is Adam."""
  c = config.optimizer
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
  adamw = optax.adamw(make_schedule(config), b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decay_mask)
  return optax.chain(clip, adamw)
