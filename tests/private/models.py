"""Small models of every architecture, with parameters that are nothing special."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn import config as config_lib
from entropy_attn.model import GPT

SIZE = {"num_layers": 2, "num_heads": 2, "d_model": 16, "context_length": 12, "max_positions": 12, "vocab_size": 41}
_ROWS = config_lib.ARCHITECTURES
LINEAR = _ROWS["scfuffn"]
ARCHITECTURES = {
  "SM+LN+G": _ROWS["ln_gelu"],
  "SM+LN+R": _ROWS["ln_relu"],
  "SM+LN": _ROWS["ln"],
  "SM+G": _ROWS["gelu"],
  "SM": _ROWS["sm"],
  "SM+WNorm": {"norm": "none", "activation": "relu", "reparam": "weight", "reparam_targets": "qkvo+ffn"},
  "SM+SNorm": _ROWS["snorm"] | {"reparam_targets": "qk+ffn"},
  "SM+σReparam": _ROWS["sm"] | {"reparam": "sigma", "reparam_targets": "qkvo+ffn"},
  "SM+LN+G+VRes+FFN(−1)": {"value_residual": "fixed", "ffns_removed": 1},
  "SM+VRes+ScFuFFN(−1)": LINEAR | {"value_residual": "fixed", "ffns_removed": 1, "alpha_init": 10.0},
  "SM+ScFFN": _ROWS["scffn"],
  "SM+ScFuFFN": LINEAR,
  "SM(t)+ScFuFFN": LINEAR | {"temperature": "per_head", "temperature_init": 0.5},
  "SM(t_i)+ScFuFFN": LINEAR | {"temperature": "per_head_position", "temperature_init": 0.5},
  "SM(log t_i)+LN+G": {"temperature": "per_head_position", "temperature_init": 0.5, "temperature_form": "log"},
}


# One of each kind that the private program treats in a way of its own.
TYPICAL = ("SM+LN+G", "SM+SNorm", "SM+VRes+ScFuFFN(−1)", "SM(t_i)+ScFuFFN", "SM(log t_i)+LN+G")


def slow_but(fast, names) -> list:
  """Parameters of a test, those that are not `fast` marked slow."""
  return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def config_of(fields: dict, family: str = "codeparrot", **size: int):
  """The config of a small model."""
  c = getattr(config_lib, family)()
  c.model.update(SIZE | {"dtype": "float32", "embedding_dropout": 0.0} | fields | size)
  config_lib.validate(c)
  return c


def make(fields: dict, family: str = "codeparrot", **size: int):
  """(config, variables) of a small model whose every parameter has been moved from its initial value."""
  made = _made(family, tuple((fields | size).items()))
  return config_of(fields, family, **size), copy.deepcopy(made)


@functools.cache
def _made(family: str, fields: tuple):
  """The variables alone, made once: most tests are of the same few models."""
  c = config_of(dict(fields), family)
  variables = jax.jit(GPT(c).init)(jax.random.key(0), jnp.zeros((1, c.model.context_length), jnp.int32))
  rng = np.random.default_rng(1)
  moved = lambda x: np.asarray(x) + np.float32(0.1) * rng.normal(size=np.shape(x)).astype(np.float32)
  return jax.tree.map(moved, dict(variables))


def logits_of(config, variables, tokens_N) -> np.ndarray:
  """The model's own, [N, V]."""
  return np.asarray(GPT(config).apply(variables, jnp.asarray(tokens_N)[None])[0][0])


def tokens_of(config, seed: int = 0, length: int | None = None) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, config.model.vocab_size, length or config.model.context_length, np.int32)
