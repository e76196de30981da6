"""A model that starts from a trained one: it is that one at step 0, and what is copied, begins, and is left out."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from steps import T, V, batch, ereg
from trees import assert_close

from entropy_attn import config as config_lib
from entropy_attn import curriculum, origin, sharding, start, teacher
from entropy_attn.errors import UserError
from entropy_attn.model import GPT
from entropy_attn.run import folder
from entropy_attn.train_step import abstract_state, init_state, make_train_step

USUAL = {
  "model__norm": "layernorm", "model__activation": "gelu", "model__ffn": "mlp", "model__residual_scaling": False,
  "model__temperature": "none", "model__bias": "all", "regularizer__weight": 0.0,
}  # fmt: skip
FADING = {
  "model__ffn": "mlp", "model__bias": "all", "model__temperature": "per_head", "model__temperature_init": 1.0,
  "curriculum__until": 0.2, "curriculum__norm_bias": "kept",
}  # fmt: skip


def usual(**overrides):
  return ereg(**USUAL | overrides)


def fading(**overrides):
  """What `usual` is reduced to."""
  return ereg(**FADING | {"init__source": "the source"} | overrides)


def trained(c):
  """Variables whose biases are not zero and whose gains are not one."""
  rng = np.random.default_rng(1)
  around_one = ("scale", "gain", "alpha", "beta", "temperature")

  def drawn(path, leaf):
    noise = 0.3 * rng.normal(size=leaf.shape)
    return np.float32(1 + noise / 3 if path[-1].key in around_one else noise)

  return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(functools.partial(init_state, c)).variables)


def begun(c, of_source, variables):
  """(state, changes) of a config that starts from the variables of another."""
  plain, group = curriculum.fold(variables, of_source.model)
  state = jax.jit(lambda params: start.started(c, group, params))(plain["params"])
  return state, start.changes(c, group, plain["params"], state.params["model"])


def tokens(length):
  return np.random.default_rng(3).integers(0, V, (2, length), np.int32)


def logits_of(c, variables, length=T):
  return np.asarray(jax.jit(lambda v: GPT(c).apply(v, tokens(length))[0])(variables))


SAME = {
  "fading": ({}, {}),
  "new biases": ({"model__bias": "qk"}, {}),
  "gains of outputs": ({}, {"model__reparam": "weight", "model__reparam_targets": "qkvo+ffn"}),
  "gains of linears": ({}, {"model__reparam": "sigma", "model__reparam_targets": "qkvo+ffn"}),
  "folded gains": ({"model__reparam": "sigma", "model__reparam_targets": "qkv+ffn"}, {"model__reparam": "weight"}),
  "untied": ({}, {"model__tie_embeddings": False}),
  "shorter": ({}, {"model__context_length": 5, "model__max_positions": 6}),
  "temperatures of positions": (
    {"model__temperature": "per_head"}, {"model__temperature": "per_head_position", "model__temperature_init": 0.3}
  ),
  "cut temperatures": (
    {"model__temperature": "per_head_position"}, {"model__temperature": "per_head_position", "model__context_length": 5}
  ),
  "value residuals": ({"model__value_residual": "fixed"}, {"model__value_residual": "fixed"}),
}  # fmt: skip


_QUICK = ("fading", "gains of outputs")  # of each other kind a compilation


@pytest.mark.parametrize(
  "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SAME]
)
def test_at_step_0_it_is_its_source(name):
  theirs, ours = SAME[name]
  of_source, c = usual(**theirs), fading(**ours)
  variables = trained(of_source)
  state, changed = begun(c, of_source, variables)
  assert changed.differs == () and changed.gone == ()
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, jax.eval_shape(functools.partial(init_state, c)))
  length = c.model.context_length
  expected = logits_of(of_source, variables, length)
  np.testing.assert_allclose(logits_of(c, state.variables, length), expected, rtol=0, atol=1e-5)
  assert expected.std() > 0.1


def test_what_is_in_both_is_copied_what_is_new_begins_and_what_goes_is_named():
  of_source = usual()
  c = ereg(model__bias="qk", model__temperature="per_head", model__ffn="mlp", model__temperature_init=0.5,
           regularizer__weight=1e-4, init__source="the source")  # fmt: skip
  variables = trained(of_source)
  state, changed = begun(c, of_source, variables)
  theirs, ours = variables["params"], state.params["model"]
  for name in ("token_embedding", "position_embedding", "ln_f"):
    assert_close(ours[name], theirs[name], rtol=0)
  for linear, leaf in (("q", "kernel"), ("q", "bias"), ("o", "kernel"), ("up", "kernel"), ("down", "kernel")):
    np.testing.assert_array_equal(ours["blocks"][linear][leaf], theirs["blocks"][linear][leaf])
  for name, value in (("temperature", 0.5), ("alpha", 1), ("beta", 1)):
    assert np.all(ours["blocks"][name] == value)
  assert np.all(state.params["regularizer"]["thresholds"] == 0.5)
  assert changed.new == ("alpha", "beta", "temperature")
  norms = tuple(f"{norm}/{leaf}" for norm in ("ln_attn", "ln_ffn") for leaf in ("bias", "scale"))
  assert changed.gone == ("down/bias", *norms, "o/bias", "up/bias", "v/bias")
  assert changed.copied[-1] == "v/kernel" and len(changed.copied) == 12
  first, note = changed.lines
  assert first.startswith("12 parameters copied; new: alpha, beta, temperature; left out: down/bias, ln_attn/bias")
  assert note.endswith("norm layernorm → none; activation gelu → identity; bias all → qk; temperature_init 0.5, not 1")


@pytest.mark.slow
def test_what_has_no_place_is_left_out_whole():
  of_source = usual(model__residual_scaling=True, model__temperature="per_head_position")
  c = fading(model__residual_scaling=False, model__ffns_removed=1, model__temperature="per_head")
  variables = trained(of_source)
  state, changed = begun(c, of_source, variables)
  blocks, deepest = (state.params["model"][name] for name in ("blocks", "blocks_without_ffn"))
  for place, stack in enumerate((blocks, deepest)):
    np.testing.assert_array_equal(stack["k"]["kernel"][0], variables["params"]["blocks"]["k"]["kernel"][place])
  np.testing.assert_array_equal(blocks["up"]["kernel"], variables["params"]["blocks"]["up"]["kernel"][:1])
  assert "up" not in deepest and changed.new == ("temperature",)
  assert changed.gone == ("alpha", "beta", "temperature")
  assert changed.differs == (
    "ffns_removed 0 → 1", "residual_scaling true → false", "temperature per_head_position → per_head"
  )  # fmt: skip


@pytest.mark.slow
def test_the_constant_of_a_norm_begins_as_the_first_batch_has_it():
  """And not as initial weights would have it: the fade then does not change the scale of what the linears read."""
  of_source, c = usual(), fading(model__num_layers=1)
  of_source.model.num_layers = 1
  variables = trained(of_source)
  state, _ = begun(c, of_source, variables)
  data = batch()
  after = jax.jit(make_train_step(c))(state, data)[0].model_state["curriculum"]["blocks"]
  embedded = variables["params"]["token_embedding"][data["inputs"]] + variables["params"]["position_embedding"]
  seen = np.mean(1 / np.sqrt(embedded.var(axis=-1) + 1e-5))
  np.testing.assert_allclose(after["ln_attn"]["inverse_std"], seen, rtol=1e-5)


MISMATCHES = {
  "sizes": (
    {"model__d_model": 32, "model__num_layers": 3},
    {},
    "model.d_model is 32 there and 16 here; model.num_layers is 3 there and 2 here: set --config.model.d_model=32 "
    "--config.model.num_layers=3, or name another source",
  ),
  "vocabulary": ({"model__vocab_size": 40}, {}, "model.vocab_size is 40 there and 32 here"),
  "positions": (
    {"model__context_length": 4, "model__max_positions": 4}, {},
    "model.max_positions is 4 there and 8 here; model.context_length is 4 there and 8 here",
  ),
  "positions of temperatures": (
    {"model__context_length": 4, "model__temperature": "per_head_position"},
    {"model__temperature": "per_head_position"},
    "model.context_length is 4 there and 8 here",
  ),
  "projection": ({"model__tie_embeddings": False}, {}, "model.tie_embeddings is False there and True here"),
  "gelu": ({"model__gelu": "tanh"}, {}, "model.gelu is tanh there and erf here: set --config.model.gelu=tanh"),
  "removed": ({"model__ffns_removed": 1}, {}, "model.ffns_removed is 1 there and 0 here"),
  "width": ({"model__ffn_width": 40}, {}, "model.ffn_width is 40 there and 64 here: set --config.model.ffn_width=40"),
  "scores": ({"model__score_scale": "layer"}, {}, "model.score_scale is layer there and root_width here"),
  "epsilon": ({"model__layer_norm_epsilon": 1e-3}, {}, "model.layer_norm_epsilon is 0.001 there and 1e-05 here"),
  "residuals": ({"model__value_residual": "fixed"}, {}, "model.value_residual is fixed there and none here"),
  "form": (
    {"model__temperature": "per_head", "model__temperature_form": "log"}, {},
    "model.temperature_form is log there and direct here",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_source_that_does_not_fit_is_refused_with_both_values(name, tmp_path):
  theirs, ours, message = MISMATCHES[name]
  folder.record(tmp_path, usual(**theirs))
  with pytest.raises(UserError) as found:
    start.find(fading(**ours | {"init__source": str(tmp_path)}))
  assert message in str(found.value) and str(found.value).startswith(f"init.source={tmp_path} does not fit the model: ")
  assert "\n" not in str(found.value)


def test_the_gelu_of_a_source_does_not_matter_where_there_is_none(tmp_path):
  folder.record(tmp_path, usual(model__gelu="tanh"))
  begins = start.find(fading(curriculum__activation="identity", init__source=str(tmp_path)))
  assert begins.folder == tmp_path and begins.named == f"init.source={tmp_path}"
  assert start.find(fading(init__source="")) is None


def test_a_source_that_is_none_is_refused_in_one_line(tmp_path):
  for value, message in ((tmp_path / "none", "init.source="), (" ", "init.source=' '")):
    with pytest.raises(UserError) as found:
      start.find(fading(init__source=str(value)))
    assert str(found.value).startswith(message) and "\n" not in str(found.value)


def test_a_source_amid_its_own_fade_is_refused():
  c = fading()
  variables = curriculum.with_fade(trained(c), jnp.float32(0.5))
  with pytest.raises(UserError, match=r"curriculum.until: norm and activation .* \(fade 0.500 of 1\)"):
    begun(c, c, variables)


@pytest.mark.parametrize(
  "overrides,message",
  [
    ({"model__reparam": "spectral"}, "with model.reparam=spectral: a kernel over its norm, without a gain"),
    ({"model__bias": "qk"}, "curriculum.norm_bias=kept needs curriculum.norm=layernorm and model.bias=all, not layer"),
    ({"curriculum__norm": "none"}, "curriculum.norm_bias=kept needs .* not none and all"),
  ],
)
def test_what_contradicts_is_refused_by_name(overrides, message):
  with pytest.raises(UserError, match=message):
    fading(**overrides)


def test_an_older_config_starts_from_its_seed():
  saved = usual()
  with saved.unlocked():
    del saved["init"]
    del saved.curriculum["norm_bias"]
  whole = config_lib.completed(saved)
  config_lib.validate(whole)
  assert whole.init.source == "" and whole.curriculum.norm_bias == "fades"
  assert "started from the source" in config_lib.describe(fading())


def test_a_fingerprint_is_of_every_name_and_value():
  params = {"a": np.arange(6, dtype=np.float32), "b": np.float32(1)}
  same = origin.fingerprint(params)
  assert same == origin.fingerprint(jax.tree.map(jnp.asarray, params)) and len(same) == 32
  others = [
    params | {"a": params["a"].reshape(2, 3)},
    params | {"b": np.float32(2)},
    {"a": params["a"], "c": params["b"]},
  ]
  assert len({same, *map(origin.fingerprint, others)}) == 4


@pytest.mark.slow
def test_on_many_devices_it_is_the_same():
  of_source, c = usual(), fading(model__reparam="weight", mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  variables = trained(of_source)
  expected, _ = begun(c, of_source, variables)
  mesh = sharding.make_mesh(c, jax.devices()[:8])
  found = origin.Origin("init.source", "the source", of_source, None, _Loaded(variables))
  with jax.set_mesh(mesh):
    abstract = abstract_state(c, mesh)
    state, changed, who = start.state_from(found, c, abstract, mesh)
  assert changed.differs == () and who["architecture"] == "SM+LN+G"
  assert who["weights"] == origin.fingerprint(variables)
  assert jax.tree.map(lambda x: x.sharding, state) == sharding.of(abstract)
  assert_close(jax.device_get(state), jax.device_get(expected), rtol=1e-6)


class _Loaded:
  """A model that is no run's."""

  def __init__(self, variables):
    self.variables = variables


def _gpt2_folder(folder_of_model, c, params):
  """Writes the parameters of `usual` as GPT-2 names them; its matrices are [in, out], as ours are."""
  blocks = params["blocks"]
  tensors = {"wte.weight": params["token_embedding"], "wpe.weight": params["position_embedding"]}
  tensors |= {"ln_f.weight": params["ln_f"]["scale"], "ln_f.bias": params["ln_f"]["bias"]}
  for i in range(c.model.num_layers):
    linear = lambda name, leaf, i=i: blocks[name]["kernel" if leaf == "weight" else "bias"][i]
    for theirs, ours in (("ln_1", "ln_attn"), ("ln_2", "ln_ffn")):
      tensors[f"h.{i}.{theirs}.weight"] = blocks[ours]["scale"][i]
      tensors[f"h.{i}.{theirs}.bias"] = blocks[ours]["bias"][i]
    for leaf in ("weight", "bias"):
      tensors[f"h.{i}.attn.c_attn.{leaf}"] = np.concatenate([linear(name, leaf) for name in "qkv"], axis=-1)
      for theirs, ours in (("attn.c_proj", "o"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down")):
        tensors[f"h.{i}.{theirs}.{leaf}"] = linear(ours, leaf)
  save_file({name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}, folder_of_model / "model.safetensors")
  m = c.model
  settings = {
    "model_type": "gpt2", "n_layer": m.num_layers, "n_head": m.num_heads, "n_embd": m.d_model, "n_positions": T,
    "vocab_size": V, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
  }  # fmt: skip
  (folder_of_model / "config.json").write_text(json.dumps(settings))


@pytest.mark.slow
def test_a_hugging_face_folder_is_a_source_and_a_teacher(tmp_path):
  of_source = usual(model__gelu="tanh")
  variables = trained(of_source)
  _gpt2_folder(tmp_path, of_source, variables["params"])
  names = {"init__source": str(tmp_path), "distill__teacher": str(tmp_path), "regularizer__weight": 0.0}
  c = fading(model__gelu="tanh", **names)
  mesh = sharding.make_mesh(c, jax.devices()[:1])
  begins, taught_by = start.find(c), teacher.find(c)
  with jax.set_mesh(mesh):
    state, changed, who = start.state_from(begins, c, abstract_state(c, mesh), mesh)
    taught, of_teacher = teacher.restore(taught_by, c, mesh)
  assert changed.differs == () and who == of_teacher and who["source"] == str(tmp_path) and "step" not in who
  expected = logits_of(of_source, variables)
  np.testing.assert_allclose(logits_of(c, state.variables), expected, atol=1e-5)
  np.testing.assert_allclose(logits_of(taught.config, taught.variables), expected, atol=1e-5)
  with pytest.raises(UserError, match=r"has no tokenizer: name the one of its tokens, --config.data.tokenizer=FILE"):
    start.tokenizer_for(begins, c)
  with pytest.raises(UserError, match=f"init.source={tmp_path} does not fit the model: model.gelu is tanh there"):
    start.find(fading(**names))
