"""The training step of a small model: its config, its batches, and what some steps make of its first state."""

import functools

import jax
import numpy as np

from entropy_attn import config, sharding
from entropy_attn.train_step import abstract_state, init_state, trace_train_step

B, T, V = 8, 8, 32
# Overrides of `ereg` on one device, of a length that no other size has: it shows in a compiled program.
LONG = {"model__context_length": 260, "model__max_positions": 260, "mesh__data": 1}


def ereg(**overrides):
  """A linear model of two layers under the penalty; overrides are fields of its config, group__field."""
  c = config.codeparrot()
  c.model.update(
    num_layers=2, num_heads=4, d_model=16, context_length=T, max_positions=T, vocab_size=V, dtype="float32"
  )
  c.model.update(norm="none", activation="identity", ffn="fused", residual_scaling=True, embedding_dropout=0.0)
  c.model.update(temperature="per_head_position", temperature_init=0.5, init_std=0.3)
  c.regularizer.weight = 1e-4
  c.optimizer.eps = 1e-2  # else Adam's first steps are signs, and rounding decides those of small gradients
  c.train.update(batch_size=B, accumulation=1, steps=20)
  c.eval.batch_size = B
  for name, value in overrides.items():
    group, field = name.split("__")
    c[group][field] = value
  config.validate(c)
  return c


def batch(seed=0):
  """Random tokens [B, T]; a fifth of the targets has no weight."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, V, (B, T + 1))
  weights = (rng.random((B, T)) < 0.8).astype(np.float32)
  return {"inputs": np.int32(tokens[:, :-1]), "targets": np.int32(tokens[:, 1:]), "weights": weights}


def initial(c):
  """The state before step 1."""
  return jax.jit(functools.partial(init_state, c))()


def one_step(c, devices=None, steps=1):
  """(state, metrics) after steps on a mesh, from the seed."""
  mesh = sharding.make_mesh(c, devices or jax.devices()[:1])
  shardings = sharding.of(abstract_state(c, mesh))
  with jax.set_mesh(mesh):
    state = jax.jit(functools.partial(init_state, c), out_shardings=shardings)()
    step = trace_train_step(c, mesh).lower().compile()  # jax.jit would do it again for the second step
    for i in range(steps):
      state, metrics = step(state, sharding.put_batch(batch(i), mesh))
  return jax.device_get(state), jax.device_get(metrics)
