"""The optimizer: AdamW, or Muon for the blocks' matrices, with warm-up, decay of matrices alone and clipping."""

import functools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax
import optax.contrib

from entropy_attn.reparam import STACKS

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


def squared_norms(grads):
  """The sum of squares of each leaf, [L] of one that is stacked over L layers."""
  # No reshape: one of a sharded array would gather it.
  of = lambda path, x: jnp.sum(jnp.square(x), axis=range(int(_is_stacked(path)), x.ndim))
  # The barrier: a sum of these sums would be made another sum over the gradients.
  return jax.lax.optimization_barrier(jax.tree_util.tree_map_with_path(of, grads))


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
  """Adam(W) as config.optimizer says (with weight_decay=0 it is Adam), or Muon with it.

  `update` takes `finite`, a boolean scalar: where False, the optimizer's state stays as it was.
  """
  c = config.optimizer
  clip = optax.stateless(functools.partial(_clip, c.clip_norm)) if c.clip_norm else optax.identity()
  adamw = optax.chain(
    _adam(c.b1, c.b2, c.eps),
    optax.add_decayed_weights(c.weight_decay, decay_mask),
    optax.scale_by_learning_rate(make_schedule(config)),
  )
  if c.name == "muon":
    adamw = optax.partition({"muon": _muon(config), "adamw": adamw}, _which)
  chain = optax.chain(clip, adamw)

  def update(grads, state, params=None, *, finite=True):
    updates, new = chain.update(grads, state, params, finite=finite)
    guarded = lambda x: isinstance(x, optax.ScaleByAdamState)
    keep = lambda new, old: new if guarded(new) else jnp.where(finite, new, old)
    return updates, jax.tree.map(keep, new, state, is_leaf=guarded)

  return optax.GradientTransformationExtraArgs(chain.init, update)


def _clip(norm, grads, _):
  """Gradients of at most this global norm, by one factor: nothing but the update has to read them again."""
  found = jnp.sqrt(sum(map(jnp.sum, jax.tree.leaves(squared_norms(grads)))))
  factor = jnp.where(found < norm, 1, norm / found)
  return jax.tree.map(lambda g: g * factor, grads)


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
  """`optax.scale_by_adam` whose moments stay as they were where a step is not finite."""

  def update(grads, state, params=None, *, finite=True):
    del params
    moved = lambda decay, grad, moment: jnp.where(finite, decay * moment + (1 - decay) * grad, moment)
    mu = jax.tree.map(functools.partial(moved, b1), grads, state.mu)
    nu = jax.tree.map(lambda g, v: moved(b2, jnp.square(g), v), grads, state.nu)
    # A CPU's compiler would copy both, to make the update of the old ones after the new ones lie in their place.
    mu, nu = jax.lax.platform_dependent((mu, nu), cpu=jax.lax.optimization_barrier, default=lambda moments: moments)
    count = jnp.where(finite, optax.safe_increment(state.count), state.count)
    unbiased = lambda moment, decay: moment / (1 - decay**count)
    ratio = lambda m, v: unbiased(m, b1) / (jnp.sqrt(unbiased(v, b2)) + eps)
    return jax.tree.map(ratio, mu, nu), optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformationExtraArgs(optax.scale_by_adam().init, update)


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


def _is_stacked(path) -> bool:
  """Whether a parameter is stacked over layers, by its path."""
  return any(getattr(key, "key", None) in STACKS for key in path)


def _which(params):
  """'muon' for the kernels of blocks, [L, in, out]; 'adamw' for all else: embeddings, head and what is no matrix."""
  of = lambda path, x: "muon" if path[-1].key == "kernel" and x.ndim == 3 else "adamw"
  return jax.tree_util.tree_map_with_path(of, params)


def _dimensions(kernels):
  """Kernels are stacked over layers, [L, in, out]: each layer's is a matrix of its own."""
  return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2), kernels)
