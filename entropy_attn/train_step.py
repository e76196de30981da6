"""One optimizer step: the state, the loss with its entropy penalty, accumulation, and the guard against NaN."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from entropy_attn import config as config_lib
from entropy_attn import curriculum, distill, sharding
from entropy_attn import entropy as entropy_lib
from entropy_attn.model import GPT, TEMPERATURE_FORMS
from entropy_attn.optimizer import make_optimizer, make_schedule, squared_norms
from entropy_attn.reparam import stacks_of


@flax.struct.dataclass
class TrainState:
  """All that a step changes.

  params: {'model': …} and, of what a regulariser learns, {'regularizer': {'thresholds': [L, H] or [1, 1], 'strengths':
  [L, H]}}.
  """

  step: jax.Array
  params: Any
  model_state: Any  # the power iteration of spectral normalisation, and where a curriculum stands; else empty
  opt_state: Any
  finite: jax.Array  # False from the first non-finite loss or gradient on: the state is then frozen as it was before

  @property
  def variables(self) -> dict:
    """The variables that the model's apply takes."""
    return {"params": self.params["model"], **self.model_state}


def init_state(config: ConfigDict) -> TrainState:
  """The state before step 1, from the config's seed."""
  tokens_BxT = jnp.zeros((1, config.model.context_length), jnp.int32)
  model_state = dict(GPT(config).init(jax.random.key(config.train.seed), tokens_BxT))
  params = {"model": model_state.pop("params")}
  if learned := _learned_of_regularizer(config):
    params["regularizer"] = learned
  opt_state = make_optimizer(config).init(params)
  return TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state, jnp.ones((), bool))


def abstract_state(config: ConfigDict, mesh) -> TrainState:
  """Shapes, dtypes and shardings of `init_state` on a mesh: what a checkpoint is restored to."""
  return sharding.laid_out(jax.eval_shape(functools.partial(init_state, config)), mesh)


def make_train_step(config: ConfigDict, teacher_config: ConfigDict | None = None):
  """A pure (state, batch) → (state, metrics); jit it with the state's shardings, and donate the state.

  With the config of a teacher it is (state, batch, the teacher's variables) → (state, metrics).

  The batch holds inputs and targets int32 [B, T] and weights float32 [B, T]. The loss is the mean over all weighted
  tokens of the batch, however many microbatches it is accumulated over, plus effective_weight × penalty; with a teacher
  it is that of `distill`.
  """
  model, optimizer, schedule = GPT(config), make_optimizer(config), make_schedule(config)
  A = config.train.accumulation
  r = config.regularizer
  weight, d = config_lib.effective_weight(config), config.distill
  if bool(d.teacher) != (teacher_config is not None):
    raise ValueError(f"distill.teacher={d.teacher!r}, and a step {'without' if d.teacher else 'with'} a teacher")

  def loss_of(params, model_state, microbatch, key, total_tokens, *teacher_variables):
    method, taught = "cross_entropy", None
    if teacher_config is not None:
      taught = distill.lesson(teacher_config, *teacher_variables, microbatch["inputs"])
      method = distill.losses(config, teacher_config, taught)
    (sums, out), new_state = model.apply(
      {"params": params["model"], **model_state},
      microbatch["inputs"],
      microbatch["targets"],
      microbatch["weights"],
      train=True,
      rngs={"dropout": key},
      mutable=list(model_state),
      method=method,
    )
    objective, cross_entropy, *kl = (x / total_tokens for x in (sums if taught else (sums, sums)))
    penalty = jnp.zeros(())
    if r.weight > 0:
      penalty = entropy_lib.penalty(
        out["entropy"],
        _thresholds_LxH(config, params),
        strengths_LxH=params.get("regularizer", {}).get("strengths"),
        gamma=r.gamma,
        reduction=r.reduction,
        sides=r.sides,
        ceiling=r.ceiling,
      )
    penalty = penalty / A
    measured = {
      "cross_entropy": cross_entropy,
      "penalty": penalty,
      "entropy_LxH": entropy_lib.head_means(out["entropy"]) / A,
      "nonfinite_rows_L": entropy_lib.nonfinite_rows(out["entropy"]),
      "nonfinite_tokens_L": out["nonfinite_tokens"],
    }
    loss = objective + weight * penalty
    if taught:
      (measured["distillation"],) = kl
    if taught and taught["entropy"].shape == out["entropy"].shape:
      measured["entropy_gap"] = distill.entropy_gap(out["entropy"], taught) / A
      loss = loss + d.entropy_weight * measured["entropy_gap"]
    return loss, (measured, new_state)

  def train_step(state: TrainState, batch, *teacher_variables) -> tuple[TrainState, dict]:
    # Each device's rows are dealt over the microbatches, so that none of them moves to another device.
    microbatches = {k: v.reshape(v.shape[0] // A, A, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
    key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    total_tokens = jnp.sum(batch["weights"])

    def gradients(i, microbatch):
      grads, (measured, new_state) = jax.grad(loss_of, has_aux=True)(
        state.params, state.model_state, microbatch, jax.random.fold_in(key, i), total_tokens, *teacher_variables
      )
      return (grads, measured), new_state

    def accumulate(sums, indexed):
      found, new_state = gradients(*indexed)
      return jax.tree.map(jnp.add, sums, found), new_state

    indexed = jnp.arange(A), microbatches
    of_first = lambda: gradients(*jax.tree.map(lambda x: x[0], indexed))
    if A == 1:  # its own gradient: nothing to add it to
      (grads, metrics), new_state = of_first()
      new_states = jax.tree.map(lambda x: x[None], new_state)
    else:
      zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_first)[0])
      (grads, metrics), new_states = jax.lax.scan(accumulate, zeros, indexed)
    new_model_state = _joined(config, new_states, state.step)

    metrics["regularizer"] = weight * metrics["penalty"]
    metrics["loss"] = metrics["cross_entropy"] + metrics["regularizer"]
    if teacher_config is not None:
      metrics["loss"] += distill.added(d, metrics)
    squares = squared_norms(grads)
    metrics["grad_norm"] = jnp.sqrt(sum(map(jnp.sum, jax.tree.leaves(squares))))
    metrics["grad_norm_L"] = jnp.concatenate(
      [jnp.sqrt(sum(jax.tree.leaves(stack))) for stack in stacks_of(squares["model"])]
    )
    metrics["learning_rate"] = schedule(state.step)
    if curriculum.of(config):
      metrics["fade"] = curriculum.fade_at(config, state.step)
    metrics.update(_learned(state.params, config.model.temperature_form))
    if r.weight > 0:
      metrics["thresholds_LxH"] = _thresholds_LxH(config, state.params)
    finite = state.finite & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    metrics["finite"] = finite

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
    params = optax.apply_updates(state.params, updates)
    kept = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
    changed = kept((state.step + 1, params, new_model_state), (state.step, state.params, state.model_state))
    return TrainState(*changed, opt_state, finite), metrics

  return train_step


def trace_train_step(config: ConfigDict, mesh, teacher: distill.Teacher | None = None):
  """The jitted step of a config as traced for the mesh in use: `.lower().compile()` makes it callable.

  Called with a state that lies as `abstract_state` says, which it consumes, and a batch of
  train.batch_size × model.context_length tokens; and with the variables of the teacher, where there is one.
  """
  state = abstract_state(config, mesh)
  shape = (config.train.batch_size, config.model.context_length)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh))
    for name, dtype in (("inputs", jnp.int32), ("targets", jnp.int32), ("weights", jnp.float32))
  }
  out_shardings = (sharding.of(state), sharding.replicated(mesh))
  step, variables = make_train_step(config, teacher and teacher.config), (teacher.variables,) if teacher else ()
  return jax.jit(step, donate_argnums=0, out_shardings=out_shardings).trace(state, batch, *variables)


def _joined(config: ConfigDict, states: dict, step: jax.Array) -> dict:
  """The model's state after a step, from those after each microbatch [A, …]."""
  # The power iteration reads the weights alone: every microbatch gave the same. A running mean is of them all.
  of_kind = {curriculum.COLLECTION: lambda x: jnp.mean(x, axis=0)}
  joined = {kind: jax.tree.map(of_kind.get(kind, lambda x: x[0]), state) for kind, state in states.items()}
  return curriculum.with_fade(joined, curriculum.fade_at(config, step + 1)) if curriculum.of(config) else joined


def _learned_of_regularizer(config: ConfigDict) -> dict:
  """What a regulariser learns, at the start: thresholds, and strengths of the heads."""
  r, L, H = config.regularizer, config.model.num_layers, config.model.num_heads
  shape = entropy_lib.THRESHOLDS[r.thresholds](L, H)
  learned = {}
  if r.weight > 0 and shape is not None:
    learned["thresholds"] = jnp.full(shape, r.threshold_init)
  if r.weight > 0 and r.strengths == "per_head":
    learned["strengths"] = jnp.zeros((L, H))
  return learned


def _thresholds_LxH(config: ConfigDict, params) -> jax.Array:
  """theta of each head: learned for each, learned for all, or as it was at the start."""
  learned = params.get("regularizer", {}).get("thresholds", config.regularizer.threshold_init)
  return jnp.broadcast_to(jnp.float32(learned), (config.model.num_layers, config.model.num_heads))


def _learned(params, temperature_form: str) -> dict:
  """The paper's few learned scalars, for the log: temperatures (mean over queries), alpha and beta."""
  stacks = stacks_of(params["model"])
  learned = {f"{name}_L": stacks[0][name] for name in ("alpha", "beta") if name in stacks[0]}
  if "temperature" in stacks[0]:
    t = TEMPERATURE_FORMS[temperature_form][1](jnp.concatenate([stack["temperature"] for stack in stacks]))
    learned["temperature_LxH"] = t.mean(axis=2) if t.ndim == 3 else t
    # A negative one inverts its query's attention: only temperature_form="direct" can get there.
    learned["negative_temperatures_L"] = jnp.sum(t < 0, axis=range(1, t.ndim), dtype=jnp.int32)
  if "strengths" in params.get("regularizer", {}):
    learned["head_weights_LxH"] = entropy_lib.head_weights(params["regularizer"]["strengths"])
  return learned
