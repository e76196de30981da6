import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from steps import B, T, batch, ereg, initial, one_step
from trees import assert_close

from entropy_attn import config, entropy, sharding
from entropy_attn.errors import UserError
from entropy_attn.optimizer import decay_mask, make_optimizer, make_schedule
from entropy_attn.train_step import abstract_state, init_state, make_train_step


def test_loss_is_the_token_mean_plus_the_weighted_published_penalty():
  c = ereg()
  state = initial(c)
  _, metrics = one_step(c)
  data = batch()
  logits, entropy = oracles.gpt(jax.device_get(state.params["model"]), c.model, data["inputs"])
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -np.take_along_axis(log_p, data["targets"][..., None], -1)[..., 0]
  expected = (nll * data["weights"]).sum() / data["weights"].sum()
  penalty = oracles.penalty_per_query_sum(entropy, np.full((2, 4), 0.5), 0.2)
  np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["penalty"], penalty, rtol=1e-4)
  assert penalty > 0.1
  np.testing.assert_allclose(metrics["loss"], expected + 1e-4 * 128 * penalty, rtol=1e-5)
  np.testing.assert_allclose(metrics["entropy_LxH"], entropy.mean(axis=(1, 2)), rtol=1e-4)


def test_effective_weight_is_the_released_one_at_its_batch():
  assert config.effective_weight(ereg(regularizer__weight=1e-5)) * 128 == pytest.approx(
    0.164, abs=1e-3
  )  # on a mean, T=128
  assert config.effective_weight(ereg(regularizer__weight=1e-5, regularizer__reduction="head_mean")) == 1e-5
  c = config.languini()
  c.regularizer.weight = 5e-5
  assert config.effective_weight(c) * 512 == pytest.approx(0.82, abs=1e-2)


@pytest.mark.parametrize("reduction", ["per_query_sum", "head_mean"])
def test_a_step_does_not_depend_on_the_accumulation(reduction):
  whole = one_step(ereg(regularizer__reduction=reduction), steps=2)
  parts = one_step(ereg(regularizer__reduction=reduction, train__accumulation=4), steps=2)
  assert_close(parts, whole, rtol=2e-4, atol=2e-6)


KINDS = {
  "ereg": {},
  "free": {
    "model__reparam": "sigma", "model__reparam_targets": "qkvo+ffn", "model__value_residual": "fixed",
    "model__ffns_removed": 1, "optimizer__name": "muon", "regularizer__strengths": "per_head",
  },
  "spectral": {
    "model__reparam": "spectral", "model__reparam_targets": "qkvo+ffn", "regularizer__weight": 0.0,
    "model__temperature": "none", "model__norm": "layernorm", "model__ffn": "mlp",
  },
}  # fmt: skip


@functools.cache
def on_one_device(kind):
  return one_step(ereg(**KINDS[kind], mesh__data=1), steps=2)


@pytest.mark.parametrize(
  "kind,data,fsdp,tensor",
  [("ereg", 2, 2, 2), ("ereg", 1, 4, 2), *(pytest.param(*kind_and_mesh, marks=pytest.mark.slow) for kind_and_mesh in (
    ("ereg", 8, 1, 1), ("ereg", 1, 1, 4), ("spectral", 2, 2, 2), ("spectral", 1, 4, 2), ("free", 2, 2, 2)))],
)  # fmt: skip
def test_a_sharded_step_equals_a_single_device(kind, data, fsdp, tensor):
  fields = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
  sharded = one_step(ereg(**KINDS[kind] | fields), jax.devices()[: data * fsdp * tensor], steps=2)
  assert_close(sharded, on_one_device(kind), rtol=2e-4, atol=5e-6)


def test_parameters_and_moments_are_really_sharded():
  c = ereg(mesh__data=1, mesh__fsdp=4, mesh__tensor=2)
  mesh = sharding.make_mesh(c)
  shardings = sharding.of(abstract_state(c, mesh))
  state = jax.jit(functools.partial(init_state, c), out_shardings=shardings)()
  kernels = [x for p, x in jax.tree_util.tree_leaves_with_path(state) if "kernel" in jax.tree_util.keystr(p)]
  assert len(kernels) == 3 * 5  # parameters and both moments of q, k, v, o and the fused FFN
  for kernel in kernels:
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


@pytest.mark.parametrize("reparam", ["none", "weight", "spectral", "sigma"])
@pytest.mark.parametrize("family", [config.codeparrot, config.languini])
def test_every_leaf_of_every_variant_has_a_sharding(family, reparam):
  for ffn, activation in (("mlp", "gelu"), ("fused", "identity")):
    for temperature in ("per_head", "per_head_position"):
      c = family()
      c.model.update(
        reparam=reparam, reparam_targets="qkvo+ffn", ffn=ffn, activation=activation, temperature=temperature
      )
      c.model.residual_scaling = True
      if reparam == "sigma":
        c.model.ffns_removed, c.optimizer.name, c.regularizer.strengths = 5, "muon", "per_head"
      c.regularizer.weight = 1e-5
      abstract = abstract_state(c, sharding.make_mesh(c))
      initial_shapes = jax.eval_shape(functools.partial(init_state, c))
      assert jax.tree.structure(abstract) == jax.tree.structure(initial_shapes)
      jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), abstract, initial_shapes
      )
      assert all(isinstance(leaf.sharding, jax.sharding.NamedSharding) for leaf in jax.tree.leaves(abstract))


def test_an_unknown_parameter_is_refused():
  with pytest.raises(KeyError, match="no sharding is known for blocks/gate/weight"):
    sharding.logical_axes(["blocks", "gate", "weight"], 2)


@pytest.mark.parametrize(
  "fields,message",
  [
    ({"mesh__fsdp": 3}, "does not fit 8 device"),
    ({"train__batch_size": 12, "train__accumulation": 2}, "train.batch_size / train.accumulation = 6 is not divisible"),
    ({"eval__batch_size": 9}, "eval.batch_size = 9 is not divisible"),
    ({"mesh__tensor": 8}, "model.num_heads=4 is not divisible by mesh.tensor=8"),
  ],
)
def test_a_mesh_that_does_not_fit_names_the_field(fields, message):
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(ereg(**fields))


def test_a_nonfinite_step_freezes_the_state_for_good():
  c = ereg()
  step = jax.jit(make_train_step(c))
  state, _ = step(initial(c), batch(0))
  poisoned = batch(1)
  poisoned["weights"] = poisoned["weights"] * np.nan
  frozen, metrics = step(state, poisoned)
  assert not metrics["finite"]
  later, metrics = step(frozen, batch(2))
  assert not metrics["finite"]
  for after in (frozen, later):
    assert int(after.step) == 1
    assert_close(after.params, state.params, rtol=0)
    assert_close(after.opt_state, state.opt_state, rtol=0)


def test_dropout_differs_between_steps_and_seeds_alone():
  losses = {}
  for seed in (0, 1):
    c = ereg(model__embedding_dropout=0.5, train__seed=seed)
    step = jax.jit(make_train_step(c))
    state = initial(ereg())
    for at in (0, 1):
      losses[seed, at] = [float(step(state.replace(step=jnp.int32(at)), batch())[1]["loss"]) for _ in range(2)]
  assert all(first == again for first, again in losses.values())
  assert len({first for first, _ in losses.values()}) == 4


def test_codeparrot_schedule_rises_over_five_percent_and_falls_linearly():
  schedule = make_schedule(config.codeparrot())
  assert schedule(0) == pytest.approx(1e-3 / 1615, rel=1e-4)
  assert schedule(1614) == pytest.approx(1e-3)
  assert schedule(1615 + (32_300 - 1615) // 2) == pytest.approx(5e-4, rel=1e-3)
  assert schedule(32_300) == pytest.approx(1e-7, rel=1e-2)


def test_languini_schedule_is_a_cosine_after_200_steps():
  schedule = make_schedule(config.languini())
  assert schedule(199) == pytest.approx(6e-4)
  assert schedule(200 + 18_065 / 2) == pytest.approx((6e-4 + 6e-6) / 2, rel=1e-3)
  assert schedule(18_265) == pytest.approx(6e-6, rel=1e-3)


def test_matrices_and_embeddings_alone_decay():
  c = ereg(model__norm="layernorm", model__bias="all", model__reparam="weight")
  params = initial(c).params
  mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
  decayed = {str(path[-1].key) for path, yes in mask if yes}
  kept = {str(path[-1].key) for path, yes in mask if not yes}
  assert decayed == {"kernel", "token_embedding", "position_embedding"}
  assert kept == {"bias", "scale", "gain", "alpha", "beta", "temperature", "thresholds"}


def test_gains_of_whole_linears_and_strengths_do_not_decay():
  params = initial(ereg(**KINDS["free"])).params
  kept = {str(path[-1].key) for path, yes in jax.tree_util.tree_leaves_with_path(decay_mask(params)) if not yes}
  assert {"gain", "strengths", "thresholds", "alpha", "temperature"} <= kept


def muon(**fields):
  return ereg(optimizer__name="muon", optimizer__clip_norm=0.0, train__steps=1000, **fields)


def test_muon_moves_each_layers_matrix_along_an_orthogonal_one_of_adamws_size_and_all_else_as_adamw():
  c = muon(optimizer__weight_decay=0.0, optimizer__warmup_fraction=0.0, model__ffn="mlp")
  params = initial(c).params
  grads = jax.tree.map(lambda x: _well_conditioned(jax.random.normal(jax.random.key(x.size), x.shape)), params)
  updates = lambda c: make_optimizer(c).update(grads, make_optimizer(c).init(params), params)[0]
  moved = updates(c)
  c.optimizer.name = "adamw"
  of_adamw = updates(c)
  for (path, update), other in zip(jax.tree_util.tree_leaves_with_path(moved), jax.tree.leaves(of_adamw), strict=True):
    if path[-1].key != "kernel":
      np.testing.assert_array_equal(update, other)
      continue
    largest = max(update.shape[1:]) ** 0.5
    singular = jnp.linalg.svd(update, compute_uv=False) / (0.2 * largest * c.optimizer.learning_rate)
    assert np.all((singular > 0.5) & (singular < 1.3)), path  # five steps of its polynomial come so near to 1
    for layer, gradient in zip(update, grads["model"]["blocks"][path[-2].key]["kernel"], strict=True):
      np.testing.assert_allclose(_direction(-layer), _direction(gradient), atol=5e-3)


def _well_conditioned(x):
  """Without small singular values, which five steps do not bring up to 1."""
  if x.ndim != 3:
    return x
  u, s, v = jnp.linalg.svd(x, full_matrices=False)
  return u @ ((s + s.max(-1, keepdims=True))[..., None] * v)


def _direction(matrix):
  """U Vᵀ of a matrix U S Vᵀ."""
  u, _, v = jnp.linalg.svd(matrix, full_matrices=False)
  return u @ v


def test_muon_decays_as_adamw_and_has_a_rate_of_its_own():
  c = muon(optimizer__warmup_fraction=0.0)
  params = initial(c).params
  zero = jax.tree.map(jnp.zeros_like, params)
  kernel = lambda c: make_optimizer(c).update(zero, make_optimizer(c).init(params), params)[0]["model"]["blocks"]["q"]
  whole = kernel(c)["kernel"]
  np.testing.assert_allclose(whole, -1e-3 * 0.1 * params["model"]["blocks"]["q"]["kernel"], rtol=1e-5)
  c.optimizer.muon_rate = 0.5
  np.testing.assert_allclose(kernel(c)["kernel"], whole / 2, rtol=1e-6)
  assert np.all(kernel(c)["bias"] == 0)


def test_strengths_grow_where_most_is_penalised_and_start_as_the_plain_penalty():
  fields = {"regularizer__strengths": "per_head", "optimizer__warmup_fraction": 0.0}
  _, plain = one_step(ereg())
  first, metrics = one_step(ereg(**fields))
  np.testing.assert_allclose(metrics["penalty"], plain["penalty"], rtol=1e-5)
  np.testing.assert_allclose(metrics["head_weights_LxH"], 1, rtol=1e-6)
  strengths = first.params["regularizer"]["strengths"]
  assert strengths.min() < 0 < strengths.max()
  _, later = one_step(ereg(**fields), steps=3)
  assert later["head_weights_LxH"].mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("alpha,beta", [(10.0, 1.0), (1.0, 0.5), (-2.0, 1.0)])
def test_residual_scaling_trains_from_other_starts(alpha, beta):
  state, metrics = one_step(ereg(model__alpha_init=alpha, model__beta_init=beta), steps=2)
  blocks = state.params["model"]["blocks"]
  assert metrics["finite"] and np.all(blocks["alpha"] != alpha) and np.all(blocks["beta"] != beta)
  np.testing.assert_allclose(blocks["alpha"], alpha, atol=0.01)


def test_clipping_bounds_the_update_and_is_off_at_zero():
  params = {"kernel": jnp.zeros(4)}
  grads = {"kernel": jnp.full(4, 1e6)}
  c = ereg()
  clip = make_optimizer(c).update(grads, make_optimizer(c).init(params), params)[1]
  c.optimizer.clip_norm = 0.0
  free = make_optimizer(c).update(grads, make_optimizer(c).init(params), params)[1]
  first_moment = lambda state: optax.tree.get(state, "mu")["kernel"]
  np.testing.assert_allclose(jnp.linalg.norm(first_moment(clip)), 0.1, rtol=1e-5)  # (1 - b1) of a unit gradient
  np.testing.assert_allclose(first_moment(free), 1e5, rtol=1e-5)


def test_thresholds_and_temperatures_learn():
  c = ereg()
  before = initial(c)
  after, _ = one_step(c, steps=3)
  assert np.all(after.params["regularizer"]["thresholds"] != before.params["regularizer"]["thresholds"])
  # Query 0 attends to itself alone: its temperature has no effect, hence no gradient.
  moved = after.params["model"]["blocks"]["temperature"] != before.params["model"]["blocks"]["temperature"]
  assert np.all(moved[..., 1:])
  assert not np.any(moved[..., 0])


def test_one_threshold_is_learned_for_all_heads():
  c = ereg(regularizer__thresholds="shared")
  before = initial(c)
  after, metrics = one_step(c, steps=3)
  assert after.params["regularizer"]["thresholds"].shape == (1, 1)
  assert after.params["regularizer"]["thresholds"] != before.params["regularizer"]["thresholds"]
  assert metrics["thresholds_LxH"].shape == (2, 4) and len(np.unique(metrics["thresholds_LxH"])) == 1

  # It is one number in the same penalty: its gradient is the sum of those of a threshold a head.
  entropy_LxBxTxH = jax.random.uniform(jax.random.key(0), (2, B, T, 4)) * math.log(T)
  penalty = lambda theta: entropy.penalty(entropy_LxBxTxH, jnp.broadcast_to(theta, (2, 4)), gamma=0.1)
  one, each = jax.grad(penalty)(jnp.full((1, 1), 0.5)), jax.grad(penalty)(jnp.full((2, 4), 0.5))
  np.testing.assert_allclose(one[0, 0], each.sum(), rtol=1e-5)


def test_fixed_thresholds_stay_and_are_no_parameters():
  c = ereg(regularizer__thresholds="fixed", regularizer__threshold_init=0.4)
  after, metrics = one_step(c, steps=3)
  assert set(after.params) == {"model"}
  np.testing.assert_array_equal(metrics["thresholds_LxH"], np.full((2, 4), 0.4, np.float32))
  learned = one_step(ereg(regularizer__threshold_init=0.4))[1]
  fixed = one_step(c)[1]
  np.testing.assert_allclose(fixed["penalty"], learned["penalty"], rtol=1e-6)  # the same before anything is learned
  assert fixed["penalty"] > 0


@pytest.mark.parametrize("thresholds", ["shared", pytest.param("fixed", marks=pytest.mark.slow)])
def test_thresholds_of_each_kind_do_not_depend_on_devices_or_accumulation(thresholds):
  whole = one_step(ereg(regularizer__thresholds=thresholds, mesh__data=1), steps=2)
  fields = {"mesh__data": 2, "mesh__tensor": 2, "train__accumulation": 2}
  parts = one_step(ereg(regularizer__thresholds=thresholds, **fields), jax.devices()[:4], steps=2)
  assert_close(parts, whole, rtol=2e-4, atol=5e-6)
