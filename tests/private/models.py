"""Small models of every architecture, with parameters that are nothing special."""

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn.model import GPT

SIZE = {"num_layers": 2, "num_heads": 2, "d_model": 16, "context_length": 12, "max_positions": 12, "vocab_size": 41}
LINEAR = {"norm": "none", "activation": "identity", "ffn": "fused", "residual_scaling": True}
ARCHITECTURES = {
  "SM+LN+G": {},
  "SM+LN+R": {"activation": "relu"},
  "SM+LN": {"activation": "identity"},
  "SM+G": {"norm": "none"},
  "SM": {"norm": "none", "activation": "identity"},
  "SM+WNorm": {"norm": "none", "activation": "relu", "reparam": "weight", "reparam_targets": "qkvo+ffn"},
  "SM+SNorm": {"norm": "none", "activation": "identity", "reparam": "spectral", "reparam_targets": "qk+ffn"},
  "SM+ScFFN": LINEAR | {"ffn": "mlp"},
  "SM+ScFuFFN": LINEAR,
  "SM(t)+ScFuFFN": LINEAR | {"temperature": "per_head", "temperature_init": 0.5},
  "SM(t_i)+ScFuFFN": LINEAR | {"temperature": "per_head_position", "temperature_init": 0.5},
  "SM(log t_i)+LN+G": {"temperature": "per_head_position", "temperature_init": 0.5, "temperature_form": "log"},
}


def make(fields: dict, family: str = "codeparrot", **size: int):
  """(config, variables) of a small model whose every parameter has been moved from its initial value."""
  c = getattr(config_lib, family)()
  c.model.update(SIZE | {"dtype": "float32", "embedding_dropout": 0.0} | fields | size)
  config_lib.validate(c)
  variables = GPT(c).init(jax.random.key(0), jnp.zeros((1, c.model.context_length), jnp.int32))
  rng = np.random.default_rng(1)
  moved = lambda x: np.asarray(x) + np.float32(0.1) * rng.normal(size=np.shape(x)).astype(np.float32)
  return c, jax.tree.map(moved, dict(variables))


def logits_of(config, variables, tokens_N) -> np.ndarray:
  """The model's own, [N, V]."""
  return np.asarray(GPT(config).apply(variables, jnp.asarray(tokens_N)[None])[0][0])


def tokens_of(config, seed: int = 0, length: int | None = None) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, config.model.vocab_size, length or config.model.context_length, np.int32)
