"""A model as the GPT-2 that computes the same, where there is one: what GPT-2 has no word for goes into the weights.

Exact but for rounding: weight, spectral and sigma normalisation into kernels; a temperature of each head into its
queries; alpha into the FFN's last linear; the scale of token embeddings into them, and out of the head where they are
tied. What stays beyond GPT-2: no LayerNorm, a fused or removed FFN, beta, values of the first layer, a temperature of
each position.
"""

from collections.abc import Mapping

import numpy as np

from entropy_attn import curriculum


def obstacle(variables: Mapping, model_config) -> str | None:
  """Why a model is no GPT-2, by the field that says so; None where it is one."""
  c = model_config
  fields = (
    ("norm", c.norm != "layernorm"),
    ("ffn", c.ffn != "mlp"),
    ("temperature", c.temperature == "per_head_position"),
    ("value_residual", c.value_residual != "none"),
    ("ffns_removed", c.ffns_removed > 0),
  )
  for name, beyond in fields:
    if beyond:
      return f"model.{name}={c[name]}"
  if c.residual_scaling and np.any(np.asarray(variables["params"]["blocks"]["beta"]) != 1):
    return "model.residual_scaling=true, whose beta has become other than 1"
  return None


def folded(model_config) -> list[str]:
  """What `to_gpt2` folds into the weights, by field; empty where it leaves every number as it is."""
  c = model_config
  names = {
    "reparam": c.reparam != "none",
    "temperature": c.temperature != "none",
    "residual_scaling": c.residual_scaling,
    "scale_embeddings": c.scale_embeddings,
  }
  return [f"model.{name}" for name, there in names.items() if there]


def to_gpt2(variables: Mapping, model_config) -> tuple[dict, object]:
  """(parameters, model config) of the GPT-2 that computes the same: those of `keys.to_tensors`.

  Args:
    variables: of a model without an `obstacle`.
  """
  plain, c = curriculum.fold(variables, model_config)
  params = {**plain["params"], "blocks": dict(plain["params"]["blocks"])}
  blocks = params["blocks"]
  c = c.copy_and_resolve_references()
  if c.temperature != "none":
    learned_LxH = np.asarray(blocks.pop("temperature"), np.float64)
    t_LxH = np.exp(learned_LxH) if c.temperature_form == "log" else learned_LxH
    blocks["q"] = _scaled(blocks["q"], 1 / np.repeat(t_LxH, c.d_model // c.num_heads, axis=1))
  if c.residual_scaling:
    blocks.pop("beta")
    blocks["down"] = _scaled(blocks["down"], 1 / np.asarray(blocks.pop("alpha"), np.float64)[:, None])
  if c.scale_embeddings:
    root = c.d_model**0.5
    params["token_embedding"] = np.float32(np.asarray(params["token_embedding"], np.float64) * root)
    if c.tie_embeddings:  # the head takes them as they then are
      params["ln_f"] = {name: np.float32(np.asarray(x, np.float64) / root) for name, x in params["ln_f"].items()}
  with c.unlocked():
    c.update(temperature="none", residual_scaling=False, scale_embeddings=False)
  return params, c


def _scaled(linear: Mapping, factor_LxN: np.ndarray) -> dict:
  """A stack of linears whose outputs are multiplied."""
  by = {"kernel": factor_LxN[:, None], "bias": factor_LxN}
  return {name: np.float32(np.asarray(x, np.float64) * by[name]) for name, x in linear.items()}
