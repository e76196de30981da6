"""Weight and spectral normalisation of chosen linears, and their folding into plain weights.

Weight normalisation (Salimans & Kingma, 2016): W = g v / ‖v‖, one gain per output unit.
Spectral normalisation (Miyato et al., 2018): W = V / sigma(V), sigma estimated by power iteration.
sigma-reparametrisation (Zhai et al., 2023, arXiv:2303.06296): W = g V / sigma(V), one gain per linear, 1 at the start.
Kernels are [in, out]; every function also takes kernels stacked over layers, [L, in, out].
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

KINDS = ("none", "weight", "spectral", "sigma")

# The stacks of blocks that a model's parameters hold, from the first layer to the last; arrays begin with their layers.
STACKS = ("blocks", "blocks_without_ffn")

# The linears (by their names in the model) that each choice of model.reparam_targets normalises.
TARGETS = {
  "qk": ("q", "k"),
  "ffn": ("up", "down", "fused"),
  "qk+ffn": ("q", "k", "up", "down", "fused"),
  "qkv+ffn": ("q", "k", "v", "up", "down", "fused"),
  "qkvo+ffn": ("q", "k", "v", "o", "up", "down", "fused"),
}


def stacks_of(params: Mapping) -> list:
  """The stacks that parameters (or what is like them) hold, from the first layer to the last."""
  return [params[name] for name in STACKS if name in params]


def kind_of(linear: str | None, model_config) -> str:
  """The normalisation of a linear of that name: one of KINDS."""
  return model_config.reparam if linear in TARGETS[model_config.reparam_targets] else "none"


def column_norms(kernel: jax.Array) -> jax.Array:
  """L2 norm of each output unit's weights, [..., out]."""
  return jnp.linalg.norm(kernel, axis=-2)


def weight_normalise(kernel: jax.Array, gain: jax.Array) -> jax.Array:
  """g v / ‖v‖ for each output unit."""
  return kernel * (gain / column_norms(kernel))[..., None, :]


def power_iteration(kernel: jax.Array, u: jax.Array, steps: int = 1) -> jax.Array:
  """The next estimate of the leading output-side singular vector, [..., out]; no gradient flows into it."""
  kernel = jax.lax.stop_gradient(kernel)
  for _ in range(steps):
    u = _normalise(jnp.einsum("...io,...i->...o", kernel, _normalise(jnp.einsum("...io,...o->...i", kernel, u))))
  return u


def spectral_normalise(kernel: jax.Array, u: jax.Array) -> jax.Array:
  """V / sigma; gradients flow through V alone."""
  return kernel / spectral_norm(kernel, u)[..., None, None]


def spectral_norm(kernel: jax.Array, u: jax.Array) -> jax.Array:
  """sigma = a V u, [...], a being the input-side vector that u implies; gradients flow through V alone."""
  u = jax.lax.stop_gradient(u)
  a = _normalise(jnp.einsum("...io,...o->...i", jax.lax.stop_gradient(kernel), u))
  return jnp.einsum("...i,...io,...o->...", a, kernel, u)


def fold(variables: dict, model_config) -> tuple[dict, object]:
  """Folds the normalisations into plain kernels.

  Args:
    variables: of the model, {'params': …} and, where there is a power iteration, {'spectral': …}.
    model_config: the model's config group.

  Returns:
    ({'params': …}, a copy of model_config with reparam 'none') that give the same logits.
  """
  params = dict(variables["params"])
  for stack in set(STACKS) & set(params):
    vectors = variables.get("spectral", {}).get(stack, {})
    params[stack] = _fold_stack(params[stack], vectors, model_config)
  plain = model_config.copy_and_resolve_references()
  with plain.unlocked():
    plain.reparam = "none"
  return {"params": params}, plain


def _fold_stack(blocks: Mapping, vectors: Mapping, model_config) -> dict:
  """A stack of blocks with plain kernels; vectors: of its power iterations."""
  folded = dict(blocks)
  for name, linear in blocks.items():
    kind = kind_of(name, model_config)
    if kind == "none":
      continue
    if kind == "weight":
      kernel = weight_normalise(linear["kernel"], linear["gain"])
    else:
      kernel = spectral_normalise(linear["kernel"], vectors[name]["u"])
    if kind == "sigma":
      kernel = linear["gain"][..., None, None] * kernel
    folded[name] = {key: value for key, value in linear.items() if key != "gain"} | {"kernel": kernel}
  return folded


def _normalise(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
