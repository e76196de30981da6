"""A model in a folder of Hugging Face form: the same model when it is read again, and a GPT-2 where it is one."""

import json
import os

from interop import gpt2
import jax
import numpy as np
from private.models import logits_of, make, tokens_of
import pytest
from trees import assert_equal

import entropy_attn
from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.interop import fold, read, write

ROWS = config_lib.ARCHITECTURES
# What a GPT-2 has no word for, and what goes into its weights.
FOLDED = {
  "as it is": ({}, []),
  "untied, every bias": ({"tie_embeddings": False, "bias": "all", "activation": "relu", "ffn_width": 11}, []),
  "no bias, scores": (
    {"bias": "none", "score_scale": "layer", "layer_norm_epsilon": 1e-3, "activation": "identity"},
    [],
  ),
  "temperatures": ({"temperature": "per_head", "temperature_init": 0.5}, ["temperature"]),
  "log temperatures, weight norm": (
    {"temperature": "per_head", "temperature_form": "log", "reparam": "weight", "reparam_targets": "qkvo+ffn"},
    ["reparam", "temperature"],
  ),
  "sigma, scaled embeddings": (
    {"reparam": "sigma", "reparam_targets": "qk+ffn", "scale_embeddings": True},
    ["reparam", "scale_embeddings"],
  ),
}
BEYOND = {
  "norm=none": ROWS["scfuffn_t"],
  "temperature=per_head_position": {"temperature": "per_head_position"},
  "value_residual=fixed": {"value_residual": "fixed"},
  "ffns_removed=1": {"ffns_removed": 1},
  "residual_scaling=true, whose beta has become other than 1": {"residual_scaling": True},
}


def export(target, config, variables, form="auto"):
  form = write.form_of(variables, config, form)
  write.write(target, variables, config, form=form, card="# A card\n", made_of={"commit": "abc"})
  return form


@pytest.mark.parametrize("name", FOLDED)
def test_a_baseline_is_a_gpt_2_of_the_same_logits(name, tmp_path):
  fields, folded = FOLDED[name]
  config, variables = make(fields)
  assert fold.folded(config.model) == [f"model.{field}" for field in folded]
  assert export(tmp_path / "out", config, variables) == "gpt2"
  said = json.loads((tmp_path / "out" / "config.json").read_text())
  from safetensors.numpy import load_file

  tensors = {n.removeprefix("transformer."): x for n, x in load_file(tmp_path / "out" / "model.safetensors").items()}
  tokens = tokens_of(config)
  true = logits_of(config, variables, tokens)
  np.testing.assert_allclose(gpt2.run(said, tensors, tokens)[0], true, atol=2e-4)
  again = entropy_attn.load(tmp_path / "out")
  assert config_lib.architecture_name(again.config).startswith("SM+LN")
  if not folded:  # every number as it was
    kept = variables["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
      found = again.variables["params"]
      for key in path:
        found = found[key.key]
      np.testing.assert_array_equal(found, leaf)


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_no_gpt_2_says_why_and_is_read_again_bit_for_bit(name, tmp_path):
  config, variables = make(BEYOND[name])
  with pytest.raises(UserError, match=f"format=gpt2: the model is no GPT-2 .model.{name}"):
    write.form_of(variables, config, "gpt2")
  assert export(tmp_path / "out", config, variables) == "entropy_attn"
  again = entropy_attn.load(tmp_path / "out")
  assert_equal(again.variables, variables)
  assert again.config.model == config.model and again.config.regularizer == config.regularizer
  assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "entropy_attn"


@pytest.mark.parametrize(
  "fields", [{"reparam": "spectral", "reparam_targets": "qk+ffn"}, ROWS["sm"] | {"ffn_width": 7}], ids=str
)
def test_states_beside_the_parameters_are_kept_and_any_model_may_be_written_as_it_is(fields, tmp_path):
  config, variables = make(fields)
  export(tmp_path / "out", config, variables, "entropy_attn")
  assert_equal(entropy_attn.load(tmp_path / "out").variables, variables)


def test_in_out_in_is_the_identity(tmp_path):
  said = gpt2.SETTINGS | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3, "n_inner": 12}
  first = entropy_attn.load(gpt2.write(tmp_path / "in", said))
  assert export(tmp_path / "out", first.config, first.variables) == "gpt2"
  second = entropy_attn.load(tmp_path / "out")
  assert_equal(second.variables, first.variables)
  assert second.config == first.config


def test_a_folder_of_something_else_is_refused_and_one_of_an_export_written_anew(tmp_path):
  config, variables = make({})
  out = tmp_path / "out"
  export(out, config, variables)
  assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "model.safetensors", "export.json"}
  config, variables = make(ROWS["scfuffn"])
  export(out, config, variables)
  assert_equal(entropy_attn.load(out).variables, variables)
  (out / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match=r"--to=.*out holds something else \(notes.txt\): name a new folder"):
    export(out, config, variables)
  (tmp_path / "file").write_text("")
  for name, message in (("file", "is no folder"), ("file/below", "cannot be written")):
    with pytest.raises(UserError, match=message):
      write.check_free(tmp_path / name, "--to")
  (tmp_path / "empty").mkdir()
  export(tmp_path / "empty", config, variables)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "out"]  # nothing unfinished is left


def test_what_fails_on_the_way_leaves_what_was_there(tmp_path, monkeypatch):
  config, variables = make({})
  out = tmp_path / "out"
  export(out, config, variables)
  before = (out / "model.safetensors").read_bytes()
  other = jax.tree.map(lambda x: 2 * x, variables)

  def full(*_):
    raise OSError(28, "No space left on device")

  real = os.replace
  for fails_at in ("rename", "swap"):
    calls = iter([full, real]) if fails_at == "rename" else iter([real, full, real])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written: .*: free some space"):
      patch.setattr(write.os, "replace", lambda a, b, calls=calls: next(calls)(a, b))
      patch.setattr(write.files, "write_json", lambda path, value: path.write_text(json.dumps(value)))
      export(out, config, other)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({"model_type": "entropy_attn"}, "is not what entropy_attn.export writes"),
    ({"model_type": "entropy_attn", "model": {"norm": "x"}, "regularizer": {}, "curriculum": {}}, "model.norm='x'"),
    ({"model_type": "entropy_attn", "model": 3, "regularizer": {}, "curriculum": {}}, "is not what"),
  ],
)
def test_a_damaged_config_of_ours_is_told(content, message, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match=message):
    read.read_config(tmp_path)
