"""A curriculum that takes norm and activation away in training: it starts as the usual model and ends linear.

With a fade f that goes from 0 to 1, and the centred stream c(x) = x − mean(x),

    norm(x)       = c(x) · ((1 − f) / std(x) + f · s) · gain + (1 − f) · bias
    activation(x) = (1 − f) · act(x) + f · x

At f = 0 these are LayerNorm and GELU or ReLU, those of a trained model if it starts from one. At f = 1 the norm is the
constant s · gain on a centred stream: LayerNorm is removed by holding its standard deviation for constant (Heimersheim
2024, arXiv:2409.13710); the gain is learned all the way. s, one number for each norm, is the running mean of 1 / std(x)
over the training text while f < 1, and stays from then on; of a trained model it begins as the mean over the first
batch. Centring is linear, and stays as in the source. The bias goes, since the linears that read the norm may have none
to fold it into; with model.bias=all they have, and norm_bias=kept keeps it whole. `fold` makes the end a plain model
with norm=none and activation=identity.

f and s are variables of the collection 'curriculum', so that training, evaluation and what is saved see the same ones.
Letters in array names: B batch, T tokens, D model width, L layers.
"""

from collections.abc import Callable, Mapping
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from entropy_attn import reparam
from entropy_attn.errors import UserError

COLLECTION = "curriculum"
# Of s a step: a batch of thousands of tokens needs no more steps than ten, and the stream grows as it learns.
_DECAY = 0.9
_UNSEEN = 0.0  # of s before the first step: what that step sees is taken whole
NORM_BIASES = ("fades", "kept")
# The linears that read each norm, by their names in the model.
_READERS = {"ln_attn": ("q", "k", "v"), "ln_ffn": ("up", "fused")}


def of(config) -> FrozenConfigDict | None:
  """What fades in the model of a whole config, its group `curriculum`; None where nothing does."""
  group = config.get("curriculum")
  return FrozenConfigDict(group) if group is not None and group.until > 0 else None


def fade_at(config: ConfigDict, step) -> jax.Array:
  """f before the step that follows `step` ones, float32.

  It is linear in steps: none of them changes the model by more than another, and there is nothing else to choose.
  """
  last = math.ceil(config.curriculum.until * config.train.steps)
  return jnp.minimum(jnp.float32(step) / last, 1)


def with_fade(model_state: dict, fade: jax.Array) -> dict:
  """The state of a model, with that f in each of its layers."""
  set_fade = lambda path, leaf: jnp.broadcast_to(fade, leaf.shape) if path[-1].key == "fade" else leaf
  return {**model_state, COLLECTION: jax.tree_util.tree_map_with_path(set_fade, model_state[COLLECTION])}


def unseen(model_state: dict) -> dict:
  """The state of a model that was trained before: each s is that of its first step, not of its initial weights."""
  forget = lambda path, leaf: jnp.full_like(leaf, _UNSEEN) if path[-1].key == "inverse_std" else leaf
  return {**model_state, COLLECTION: jax.tree_util.tree_map_with_path(forget, model_state[COLLECTION])}


class Norm(nn.Module):
  """LayerNorm that becomes a constant scale; float32. s moves wherever its collection is mutable (a training step).

  Attributes:
    epsilon: added to the variance.
    keeps_bias: whether its bias stays. It is told in the state, too: `fold` sees no more of a curriculum.
  """

  epsilon: float
  keeps_bias: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    D = x_BxTxD.shape[-1]
    gain_D = self.param("scale", nn.initializers.ones_init(), (D,))
    bias_D = self.param("bias", nn.initializers.zeros_init(), (D,))
    centred_BxTxD = x_BxTxD - jnp.mean(x_BxTxD, axis=-1, keepdims=True)
    inverse_BxTx1 = jax.lax.rsqrt(jnp.mean(jnp.square(centred_BxTxD), axis=-1, keepdims=True) + self.epsilon)
    seen = jax.lax.stop_gradient(jnp.mean(inverse_BxTx1))
    fade = _fade(self)
    average = self.variable(COLLECTION, "inverse_std", lambda: seen)
    s = average.value
    if self.is_mutable_collection(COLLECTION) and not self.is_initializing():
      moved = jnp.where(s == _UNSEEN, seen, _DECAY * s + (1 - _DECAY) * seen)
      average.value = jnp.where(fade < 1, moved, s)
    kept = self.variable(COLLECTION, "kept_bias", lambda: jnp.ones(())).value if self.keeps_bias else 1 - fade
    return centred_BxTxD * ((1 - fade) * inverse_BxTx1 + fade * s) * gain_D + kept * bias_D


class Activation(nn.Module):
  """An activation that becomes the identity: called, the pure function that it is at its fade."""

  start: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self) -> Callable[[jax.Array], jax.Array]:
    fade = _fade(self)
    return lambda x: (1 - fade.astype(x.dtype)) * self.start(x) + fade.astype(x.dtype) * x


def fold(variables: dict, model_config) -> tuple[dict, object]:
  """Folds what is left of the norms, and the normalisations of `reparam.fold`, into plain kernels.

  Args:
    variables: of the model, {'params': …} and its other collections.
    model_config: the model's config group: that of the end of its curriculum, where it had one.

  Returns:
    ({'params': …}, a copy of model_config with reparam 'none') that give the same logits.

  Raises:
    UserError: for a model whose curriculum has not come to its end.
  """
  plain, plain_config = reparam.fold(variables, model_config)
  if COLLECTION not in variables:
    return plain, plain_config
  state = variables[COLLECTION]
  leaves = jax.tree_util.tree_leaves_with_path(state)
  fade = min(float(jnp.min(leaf)) for path, leaf in leaves if path[-1].key == "fade")
  if fade < 1:
    raise UserError(
      f"curriculum.until: norm and activation of this model are not gone yet (fade {fade:.3f} of 1), and only then "
      "does it fold into plain weights: train on, or take a later checkpoint"
    )
  params = {name: _fold_stack(part, state[name]) if name in state else part for name, part in plain["params"].items()}
  return {"params": params}, plain_config


def _fold_stack(stack: Mapping, state: Mapping) -> dict:
  """A stack of blocks whose kernels hold what is left of its norms."""
  blocks = dict(stack)
  for norm in _READERS.keys() & state.keys():
    learned = blocks.pop(norm)
    scale_LxD = learned["scale"] * state[norm]["inverse_std"][:, None]
    for name in (name for name in _READERS[norm] if name in blocks):
      reader = dict(blocks[name])
      if "kept_bias" in state[norm]:
        kept_LxD = state[norm]["kept_bias"][:, None] * learned["bias"]
        reader["bias"] = reader["bias"] + jnp.einsum("LD,LDN->LN", kept_LxD, reader["kernel"])
      kernel_LxDxN = scale_LxD[..., None] * reader["kernel"]
      # c(x) W = x (W − the mean of its rows)
      reader["kernel"] = kernel_LxDxN - jnp.mean(kernel_LxDxN, axis=-2, keepdims=True)
      blocks[name] = reader
  return blocks


def _fade(module: nn.Module) -> jax.Array:
  return module.variable(COLLECTION, "fade", lambda: jnp.zeros(())).value
