"""The optimizer: AdamW with warm-up, decay of matrices alone, and global-norm clipping."""

import math

import jax
from ml_collections import ConfigDict
import optax

# The last name on the path of what decays; biases, gains, alpha, beta, temperatures and thresholds do not.
_DECAYED = ("kernel", "token_embedding", "position_embedding", "head")


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
  """Adam(W) as config.optimizer says; with weight_decay=0 it is Adam."""
  c = config.optimizer
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
  adamw = optax.adamw(make_schedule(config), b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decay_mask)
  return optax.chain(clip, adamw)
