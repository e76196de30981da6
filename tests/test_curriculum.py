"""Norm and activation that fade away: the start is the usual model, the end a plain linear one, and what is between."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import batch, ereg, initial, one_step
from trees import assert_close

from entropy_attn import config, counts, curriculum
from entropy_attn.errors import UserError
from entropy_attn.model import GPT
from entropy_attn.private.price import predict
from entropy_attn.private.program import spec
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.prepare import Exact
from entropy_attn.train_step import make_train_step

STEPS, UNTIL = 20, 0.2  # gone after 4 steps
LINEAR = {"norm": "none", "activation": "identity"}


def fading(norm="layernorm", activation="gelu", **overrides):
  """A small model of residual scaling and an MLP, whose norm and activation fade."""
  fields = {"model__ffn": "mlp", "curriculum__until": UNTIL, "regularizer__weight": 0.0, "model__bias": "all"}
  return ereg(**fields | {"curriculum__norm": norm, "curriculum__activation": activation} | overrides)


def variables_of(c, fade):
  """Moved from their initial values, so that no bias is zero, no gain one, and each layer has an s of its own."""
  variables = jax.jit(GPT(c).init)(jax.random.key(0), batch()["inputs"])
  rng = np.random.default_rng(1)
  moved = lambda x: x + np.float32(0.1) * rng.normal(size=x.shape).astype(np.float32)
  return curriculum.with_fade(jax.tree.map(moved, dict(variables)), jnp.float32(fade))


def logits_of(c, variables):
  return np.asarray(jax.jit(lambda v: GPT(c).apply(v, batch()["inputs"])[0])(variables))


@pytest.mark.parametrize("norm,activation", [("layernorm", "gelu"), ("none", "relu"), ("layernorm", "identity")])
def test_it_starts_as_the_usual_model(norm, activation):
  c = fading(norm, activation)
  usual = ereg(**{f"model__{name}": c.model[name] for name in ("ffn", "bias")}, model__norm=norm,
               model__activation=activation, regularizer__weight=0.0)  # fmt: skip
  variables = variables_of(c, 0.0)
  plain = {"params": variables["params"]}
  shapes = jax.eval_shape(GPT(usual).init, jax.random.key(0), batch()["inputs"])
  assert jax.tree.structure(plain["params"]) == jax.tree.structure(shapes["params"])
  np.testing.assert_allclose(logits_of(c, variables), logits_of(usual, plain), rtol=1e-4, atol=1e-5)


ENDS = {
  "plain": {},
  "bias kept": {"curriculum__norm_bias": "kept"},
  "kept, spectrally normalised": {
    "curriculum__norm_bias": "kept", "model__reparam": "spectral", "model__reparam_targets": "qkvo+ffn"
  },
  "biases of queries and keys alone": {"model__bias": "qk"},
  "fused": {"model__ffn": "fused", "activation": "identity"},
  "activation alone": {"norm": "none"},
  "weight normalised": {"model__reparam": "weight", "model__reparam_targets": "qkvo+ffn"},
  "spectrally normalised": {"model__reparam": "spectral", "model__reparam_targets": "qkvo+ffn"},
  "unscaled": {"model__residual_scaling": False, "model__temperature": "none"},
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_its_end_folds_into_the_plain_model(name):
  c = fading(**ENDS[name])
  variables = variables_of(c, 1.0)
  folded, plain = curriculum.fold(variables, c.model)
  assert (plain.norm, plain.activation, plain.reparam) == ("none", "identity", "none")
  shapes = jax.eval_shape(GPT(plain).init, jax.random.key(0), batch()["inputs"])["params"]
  assert jax.tree.map(jnp.shape, folded["params"]) == jax.tree.map(jnp.shape, shapes)
  logits = logits_of(c, variables)
  np.testing.assert_allclose(logits_of(plain, folded), logits, rtol=1e-5, atol=1e-5)
  assert np.abs(logits - logits_of(c, variables_of(c, 0.9))).max() > 1e-3  # the last tenth still does something


def test_an_unfinished_one_does_not_fold_and_is_told():
  c = fading()
  with pytest.raises(UserError, match=r"curriculum.until: norm and activation .* \(fade 0.750 of 1\)"):
    curriculum.fold(variables_of(c, 0.75), c.model)
  with pytest.raises(UserError, match="curriculum.until"):
    Exact(variables_of(c, 0.75), c.model, spec.transforms_for(c.model))


@pytest.mark.parametrize("norm_bias", curriculum.NORM_BIASES)
def test_the_private_model_is_the_one_at_its_end(norm_bias):
  c = fading(model__temperature_init=0.5, curriculum__norm_bias=norm_bias)
  variables = jax.device_get(variables_of(c, 1.0))
  private = weights_lib.fold(variables, c.model, spec.transforms_for(c.model).exactly(), ())
  assert private.kept_ffns == ()  # all of them are eliminated: there is no norm before them
  found = Exact(variables, c.model, spec.transforms_for(c.model)).logits(batch()["inputs"][0])
  np.testing.assert_allclose(found[0], logits_of(c, variables)[0, -1], rtol=1e-4, atol=1e-4)


def course(c, steps):
  """The state before the first step, and after each of some with what it measured; all from one compilation."""
  step, state = jax.jit(make_train_step(c)), initial(c)
  found = [(jax.device_get(state), None)]
  for i in range(steps):
    state, metrics = step(state, batch(i))
    found.append(jax.device_get((state, metrics)))
  return found


def test_the_fade_rises_by_equal_steps_and_is_saved_with_the_state():
  for steps, (state, metrics) in enumerate(course(fading(), 6)):
    held = {part["fade"].min() for part in state.model_state["curriculum"]["blocks"].values()}
    assert held == {min(steps / 4, 1)}  # by which the next step will be made, and an evaluation now
    assert metrics is None or metrics["fade"] == min((steps - 1) / 4, 1)


def test_the_scale_is_the_running_mean_of_what_was_seen_until_the_fade_ends():
  seen = []
  for steps, (state, _) in enumerate(course(fading(model__num_layers=1, train__accumulation=2), 6)):
    s = state.model_state["curriculum"]["blocks"]["ln_attn"]["inverse_std"]
    if 0 < steps <= 4:
      np.testing.assert_allclose(s, 0.9 * seen[-1][0] + 0.1 * seen[-1][1], rtol=1e-5)
    elif seen:
      np.testing.assert_array_equal(s, seen[-1][0])
    params = state.params["model"]
    x = params["token_embedding"][batch(steps)["inputs"]] + params["position_embedding"][None]
    seen.append((s, np.mean(1 / np.sqrt(x.var(axis=-1) + 1e-5))))
  assert seen[-1][0] != pytest.approx(seen[-1][1], rel=1e-6)


@pytest.mark.slow
def test_it_does_not_depend_on_devices_or_accumulation():
  whole = one_step(fading(mesh__data=1), steps=3)
  parts = one_step(fading(mesh__data=1, train__accumulation=4), steps=3)
  assert_close(parts, whole, rtol=2e-4, atol=5e-6)
  mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  sharded = one_step(fading(**mesh), jax.devices()[:8], steps=3)
  assert_close(sharded, whole, rtol=3e-4, atol=1e-5)


@pytest.mark.slow
def test_recomputed_blocks_are_the_same():
  assert_close(one_step(fading(model__remat=True), steps=2), one_step(fading(), steps=2), rtol=1e-4, atol=1e-6)


def test_nothing_changes_without_one():
  c = ereg()
  assert GPT(c) == GPT(c.model)
  assert GPT(fading()) != GPT(fading().model)  # whose group is that of the end
  assert one_step(c)[0].model_state == {}


def test_it_counts_and_costs_what_the_plain_model_does():
  c, plain = fading(), fading(curriculum__until=0.0)
  assert counts.summary(c) == counts.summary(plain)
  assert config.architecture_name(c) == "SM(t)+ScFFN"
  assert predict.summary_of(c) == predict.summary_of(plain)


def test_an_mlp_that_became_linear_costs_what_a_fused_ffn_does():
  """Exact elimination leaves neither: so a curriculum of the activation, which needs an MLP, costs nothing."""
  c = config.codeparrot("T128", "scffn")
  fused = config.codeparrot("T128", "scfuffn")
  assert predict.summary_of(c) == predict.summary_of(fused)


@pytest.mark.parametrize(
  "overrides,message",
  [
    ({"model__norm": "layernorm"}, "needs model.norm=none and model.activation=identity, not layernorm and identity"),
    ({"model__activation": "gelu"}, "needs model.norm=none and model.activation=identity, not none and gelu"),
    ({"curriculum__norm": "none", "curriculum__activation": "identity"}, "fades nothing"),
    ({"model__ffn": "fused"}, "curriculum.activation=gelu needs model.ffn=mlp"),
    ({"curriculum__until": 1.0}, "curriculum.until=1.0 must be below 1"),
    ({"curriculum__until": 0.0, "curriculum__activation": "relu"}, "curriculum.activation=relu has no effect with"),
  ],
)
def test_what_contradicts_is_refused_by_name(overrides, message):
  with pytest.raises(UserError, match=message):
    fading(**overrides)


def test_the_last_fading_step_is_counted_from_the_config():
  c = fading(curriculum__until=0.33)
  assert float(curriculum.fade_at(c, 6)) == pytest.approx(6 / 7) and math.ceil(0.33 * STEPS) == 7
  assert float(curriculum.fade_at(c, 7)) == 1 and float(curriculum.fade_at(c, STEPS)) == 1
  assert "layernorm and gelu faded out by 33% of the steps" in config.describe(c)
