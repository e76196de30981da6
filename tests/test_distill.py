"""Distillation: its loss and gradients against all logits at once, and that a teacher is a constant of the step."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st
import inputs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import LONG, batch, ereg, initial
from trees import assert_close

from benchmarks import programs
from entropy_attn import config, distill, sharding
from entropy_attn.distill import Teacher
from entropy_attn.errors import UserError
from entropy_attn.loss import cross_entropy_sum, distilled_sum
from entropy_attn.model import GPT
from entropy_attn.train_step import abstract_state, make_train_step, trace_train_step


def whole(x, head, teacher, targets, weights, weight, t):
  """The same with all logits, in float64."""
  log_p = jax.nn.log_softmax(x @ head)
  cross_entropy = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  taught, learned = jax.nn.softmax(teacher[0] @ teacher[1] / t), jax.nn.softmax(x @ head / t)
  kl = jnp.sum(taught * (jnp.log(taught) - jnp.log(learned)), axis=-1)
  total = (1 - weight) * cross_entropy + weight * t**2 * kl
  return jnp.sum(total * weights), (jnp.sum(cross_entropy * weights), jnp.sum(kl * weights))


@settings(deadline=None, max_examples=4)
@given(
  shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 8, 13, 32]), st.integers(1, 6), st.integers(2, 40)),
  width=st.integers(1, 6),
  weight=st.sampled_from([0.0, 0.3, 1.0]),
  temperature=st.sampled_from([0.5, 1.0, 3.0]),
  seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_equal_those_of_all_logits_at_once(shape, width, weight, temperature, seed):
  x, head, targets, weights = inputs.of_loss(seed, *shape)
  rng = np.random.default_rng(seed + 1)
  teacher = rng.normal(size=(*shape[:2], width)), rng.normal(size=(width, shape[3]))

  def ours(x, head):
    total, *rest = distilled_sum(
      x, head, tuple(map(jnp.float32, teacher)), targets, jnp.float32(weights), weight=weight, temperature=temperature
    )
    return 3 * total, rest

  def expected(x, head):
    total, rest = whole(x, head, teacher, targets, weights, weight, temperature)
    return 3 * total, rest

  found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(jnp.float32(x), jnp.float32(head))
  with jax.enable_x64():
    true = jax.value_and_grad(expected, argnums=(0, 1), has_aux=True)(jnp.asarray(x), jnp.asarray(head))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=3e-5)


def test_without_weight_it_is_the_cross_entropy_and_a_token_without_weight_is_not_looked_at():
  x, head, targets, weights = inputs.of_loss(1, 2, 9, 4, 9)
  weights[1, 3] = 0
  x[1, 3] = np.nan
  x, head, weights = map(jnp.float32, (x, head, weights))
  teacher = jnp.where(jnp.isnan(x), jnp.nan, 0.5), head
  grad = lambda weight: jax.value_and_grad(
    lambda x: distilled_sum(x, head, teacher, targets, weights, weight=weight, temperature=2.0)[0]
  )(x)
  assert_close(grad(0.0), jax.value_and_grad(lambda x: cross_entropy_sum(x, head, targets, weights))(x), rtol=1e-5)
  loss, dx = grad(0.7)
  assert np.isfinite(loss) and np.all(np.isfinite(dx)) and np.all(dx[1, 3] == 0)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it():
  x, head, targets, weights = (jnp.asarray(a, jnp.float32) for a in inputs.of_loss(2, 2, 9, 4, 9))
  loss = lambda x: distilled_sum(x, head, (x, head), jnp.int32(targets), weights, weight=1.0, temperature=2.0)[0]
  value, dx = jax.value_and_grad(loss)(x)
  np.testing.assert_allclose(value, 0, atol=1e-4)
  np.testing.assert_allclose(dx, 0, atol=1e-5)


def student(**overrides):
  fields = {"regularizer__weight": 0.0, "distill__teacher": "runs/teacher", "distill__entropy_weight": 0.3}
  return ereg(**fields | {"distill__weight": 0.6} | overrides)


def teacher_config(**overrides):
  fields = {"model__norm": "layernorm", "model__activation": "gelu", "model__ffn": "mlp", "regularizer__weight": 0.0}
  return ereg(**fields | {"model__residual_scaling": False, "model__temperature": "none", "model__d_model": 32,
                          "train__seed": 5, "model__embedding_dropout": 0.5} | overrides)  # fmt: skip


def taught_steps(c, of_teacher=None, devices=None, steps=2):
  """(state, metrics) after steps on a mesh, from the seed."""
  of_teacher = of_teacher or teacher_config()
  mesh = sharding.make_mesh(c, devices or jax.devices()[:1])
  with jax.set_mesh(mesh):
    state = jax.jit(lambda: initial(c), out_shardings=sharding.of(abstract_state(c, mesh)))()
    laid_out = abstract_state(of_teacher, mesh)
    teacher = jax.jit(lambda: initial(of_teacher), out_shardings=sharding.of(laid_out))()
    step = trace_train_step(c, mesh, Teacher(of_teacher, teacher.variables)).lower().compile()
    for i in range(steps):
      state, metrics = step(state, sharding.put_batch(batch(i), mesh), teacher.variables)
    assert_close(jax.device_get(teacher), jax.device_get(initial(of_teacher)), rtol=0)  # neither moved nor consumed
  return jax.device_get(state), jax.device_get(metrics)


@pytest.mark.slow
def test_every_term_of_the_loss_is_recorded_and_is_what_it_says():
  c, of_teacher = student(), teacher_config()
  state, metrics = taught_steps(c, steps=1)
  assert set(state.params) == {"model"} and state.model_state == {}  # nothing of the teacher
  data, variables = batch(), initial(of_teacher).variables
  logits, out = GPT(c).apply(initial(c).variables, data["inputs"])
  taught_logits, taught = GPT(of_teacher).apply(variables, data["inputs"])  # no dropout: it is not in training
  p = jax.nn.softmax(taught_logits / 2)
  kl = jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits / 2)), axis=-1)
  kl = jnp.sum(kl * data["weights"]) / data["weights"].sum()
  gap = jnp.mean((out["entropy"] - taught["entropy"]) ** 2)
  np.testing.assert_allclose(metrics["distillation"], kl, rtol=1e-4)
  np.testing.assert_allclose(metrics["entropy_gap"], gap, rtol=1e-4)
  assert gap > 0.01
  expected = 0.4 * metrics["cross_entropy"] + 0.6 * 4 * kl + 0.3 * gap
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_step_follows_the_gradient_of_that_loss():
  c, of_teacher, data = student(), teacher_config(), batch()
  teacher = initial(of_teacher).variables
  taught_logits, taught = GPT(of_teacher).apply(teacher, data["inputs"])

  def loss(params):
    logits, out = GPT(c).apply({"params": params}, data["inputs"])
    log_p, p = jax.nn.log_softmax(logits), jax.nn.softmax(taught_logits / 2)
    cross_entropy = -jnp.take_along_axis(log_p, data["targets"][..., None], -1)[..., 0]
    kl = jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits / 2)), axis=-1)
    tokens = jnp.sum((0.4 * cross_entropy + 2.4 * kl) * data["weights"]) / data["weights"].sum()
    return tokens + 0.3 * jnp.mean((out["entropy"] - taught["entropy"]) ** 2)

  expected = jax.grad(loss)(initial(c).params["model"])
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(expected)))
  state, metrics = taught_steps(c, steps=1)
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
  first_moment = state.opt_state[1][0].mu["model"]  # 0.1 of the gradient, clipped to a norm of 1
  scale = 0.1 / np.maximum(norm, 1)
  assert_close(first_moment, jax.tree.map(lambda g: np.asarray(g * scale), expected), rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_it_does_not_depend_on_devices_or_accumulation():
  single = taught_steps(student(mesh__data=1))
  assert_close(taught_steps(student(mesh__data=1, train__accumulation=4)), single, rtol=2e-4, atol=5e-6)
  mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  assert_close(taught_steps(student(**mesh), devices=jax.devices()[:8]), single, rtol=3e-4, atol=1e-5)


def test_a_teacher_of_another_depth_teaches_by_its_logits_alone():
  c = student(distill__entropy_weight=0.0)
  _, metrics = taught_steps(c, teacher_config(model__num_layers=1), steps=1)
  assert metrics["distillation"] > 0 and "entropy_gap" not in metrics


def test_the_logits_of_the_whole_batch_never_exist():
  batch_size = {"train__batch_size": 16, "eval__batch_size": 16}
  c, of_teacher = student(**LONG, **batch_size, model__vocab_size=37), teacher_config(**LONG, model__vocab_size=37)
  mesh = sharding.make_mesh(c, jax.devices()[:1])
  with jax.set_mesh(mesh):
    teacher = Teacher(of_teacher, initial(of_teacher).variables)
    text = trace_train_step(c, mesh, teacher).lower().compile().as_text()
  assert 0 < programs.most_tokens(text, 37) <= 16 * -(-260 // 8)
  assert programs.square_buffers(text, 260) == []


def test_a_step_needs_the_teacher_that_its_config_names():
  with pytest.raises(ValueError, match="a step without a teacher"):
    make_train_step(student())
  with pytest.raises(ValueError, match="a step with a teacher"):
    make_train_step(ereg(), teacher_config())


@pytest.mark.parametrize(
  "overrides,message",
  [
    ({"distill__weight": 1.2}, "distill.weight=1.2 must be at most 1"),
    ({"distill__teacher": ""}, "distill.weight=0.6 has no effect with distill.teacher=''"),
    ({"regularizer__weight": 1e-5}, "distill.entropy_weight=0.3 and regularizer.weight=1e-05 are both set"),
    ({"distill__temperature": 0.0}, "distill.temperature=0.0 must be more than 0"),
  ],
)
def test_what_contradicts_is_refused_by_name(overrides, message):
  with pytest.raises(UserError, match=re.escape(message)):
    student(**overrides)


def test_it_is_said():
  assert "distilled from runs/teacher" in config.describe(student())
  assert distill.entropy_gap(jnp.ones((1, 2, 3, 4)), {"entropy": jnp.zeros((1, 2, 3, 4))}) == 1
