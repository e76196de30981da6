"""GPT-2 from Hugging Face files: as an independent implementation computes it, or refused by name. No PyTorch."""

import json
import pathlib

from huggingface_hub import constants
from interop import gpt2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import entropy_attn
from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.interop import keys, settings
from entropy_attn.model import GPT
from entropy_attn.run import folder, source

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
# What the file says beyond gpt2.SETTINGS, and how it is written.
FILES = {
  "as it is": ({}, {}),
  "no prefix, bfloat16, shards": ({"scale_attn_weights": False}, {"prefix": "", "dtype": "bfloat16", "shards": 3}),
  "untied, float16": (
    {"tie_word_embeddings": False, "activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True},
    {"dtype": "float16"},
  ),
  "relu, width, epsilon": (
    {"activation_function": "relu", "n_inner": 13, "layer_norm_epsilon": 1e-2, "n_layer": 1, "n_head": 4},
    {"shards": 2},
  ),
  "every score scaled": (
    {
      "scale_attn_weights": False,
      "scale_attn_by_inverse_layer_idx": True,
      "activation_function": "linear",
      "n_layer": 3,
    },
    {"prefix": ""},
  ),
}


def logits_of(model, tokens_T=TOKENS):
  logits, out = jax.jit(GPT(model.config).apply)(model.variables, jnp.asarray(tokens_T)[None])
  return np.asarray(logits[0]), np.asarray(out["entropy"][:, 0])


@pytest.mark.parametrize("name", FILES)
def test_logits_and_entropies_are_those_of_the_formulas(name, tmp_path):
  said, how = FILES[name]
  said = gpt2.SETTINGS | said
  tensors = gpt2.tensors_of(said)
  model = entropy_attn.load(gpt2.write(tmp_path, said, tensors, **how))
  expected = gpt2.run(said, gpt2.rounded(tensors, how.get("dtype", "float32")), TOKENS)
  for found, true in zip(logits_of(model), expected, strict=True):
    np.testing.assert_allclose(found, true, atol=1e-4)
  assert (model.folder, model.step, model.files) == (None, 0, tmp_path)
  assert model.config.model.context_length == model.config.model.max_positions == 10
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.variables))
  assert source.read_config(tmp_path) == model.config
  assert not folder.holds_run(tmp_path)


def test_the_key_map_has_every_parameter_of_the_model_in_its_shape():
  for tied in (True, False):
    c, _ = settings.of_gpt2(gpt2.SETTINGS | {"n_inner": 13, "tie_word_embeddings": tied}, "x")
    ours = jax.eval_shape(GPT(c).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    made = keys.to_params(lambda name, c=c: np.zeros(keys.shapes(c.model)[name]), c.model)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, ours)
    theirs = {name: x.shape for name, x in keys.to_tensors(made, c.model)}
    assert {name.removeprefix("transformer."): shape for name, shape in theirs.items()} == keys.shapes(c.model)


def test_silence_means_what_transformers_takes_it_for():
  c, notes = settings.of_gpt2({"model_type": "gpt2"}, "x")
  m = c.model
  assert (m.num_layers, m.num_heads, m.d_model, m.max_positions, m.vocab_size) == (12, 12, 768, 1024, 50_257)
  assert (m.activation, m.gelu, m.layer_norm_epsilon, m.embedding_dropout) == ("gelu", "tanh", 1e-5, 0.1)
  assert (m.tie_embeddings, m.score_scale, m.ffn_width, m.bias) == (True, "root_width", 0, "all")
  assert config_lib.architecture_name(c) == "SM+LN+G" and notes == []
  _, notes = settings.of_gpt2({"model_type": "gpt2", "attn_pdrop": 0.1, "resid_pdrop": 0.2}, "x")
  assert notes == [
    "attn_pdrop=0.1 and resid_pdrop=0.2 act in training alone, and not here: model.embedding_dropout is all there is"
  ]


@pytest.mark.parametrize("activation", settings._ACTIVATIONS)
def test_what_is_written_of_a_config_is_read_as_the_same(activation):
  for score_scale in settings._SCORES:
    c, _ = settings.of_gpt2(gpt2.SETTINGS | {"activation_function": activation, "n_inner": 12}, "x")
    c.model.score_scale = score_scale
    again, _ = settings.of_gpt2(settings.to_gpt2(c.model, end_id=None), "x")
    assert again == c


@pytest.mark.parametrize(
  ("said", "message"),
  [
    ({"model_type": "llama"}, "model_type='llama' is not computed here: a GPT-2 (gpt2) is needed"),
    ({"activation_function": "silu"}, "activation_function='silu' is not computed here, only gelu_new, "),
    ({"add_cross_attention": True}, "add_cross_attention=True is refused: attention to another model's states"),
    ({"rotary_dim": 4}, "rotary_dim=4 is refused: it is no setting of a GPT-2, and what it changes is not known"),
    ({"auto_map": {"AutoModel": "code.py"}}, "is refused: code that comes with a model is not run"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is refused: quantised weights"),
    ({"n_layer": "2"}, "n_layer='2' is not an integer"),
    ({"layer_norm_epsilon": None}, "layer_norm_epsilon=None is not a number"),
    ({"scale_attn_weights": 1}, "scale_attn_weights=1 is neither true nor false"),
    ({"n_head": 3}, "model.d_model=8 is not divisible by model.num_heads=3"),
    ({"n_layer": 1}, "holds 12 tensors that its config.json does not explain: h.1."),
    ({"n_layer": 3}, "lacks 12 tensors that its config.json asks for: h.2."),
    ({"n_embd": 16}, "wte.weight is [23, 8], and config.json makes it [23, 16]"),
    ({"tie_word_embeddings": False}, "lacks 1 tensors that its config.json asks for: lm_head.weight"),
  ],
)
def test_a_setting_that_does_not_fit_is_refused_by_name(said, message, tmp_path):
  gpt2.write(tmp_path, gpt2.SETTINGS)
  (tmp_path / "config.json").write_text(json.dumps(gpt2.SETTINGS | said))
  with pytest.raises(UserError) as found:
    entropy_attn.load(tmp_path)
  assert message in str(found.value) and str(tmp_path) in str(found.value) and "\n" not in str(found.value)


def test_constants_and_heads_of_other_tasks_are_left_out_and_a_tied_head_may_be_there_twice(tmp_path, capfd):
  more = {
    "transformer.h.0.attn.bias": np.ones((1, 1, 10, 10), np.float32),
    "transformer.h.0.attn.masked_bias": np.float32([-1e4]),
    "multiple_choice_head.summary.weight": np.ones((1, 8), np.float32),
  }
  tensors = gpt2.tensors_of(gpt2.SETTINGS)
  gpt2.write(tmp_path, tensors=tensors, more=more | {"lm_head.weight": tensors["wte.weight"]})
  model = entropy_attn.load(tmp_path)
  assert "multiple_choice_head.summary.weight: a head of another task, which is left out" in capfd.readouterr().err
  np.testing.assert_allclose(logits_of(model)[0], gpt2.run(gpt2.SETTINGS, tensors, TOKENS)[0], atol=1e-4)
  gpt2.write(tmp_path, tensors=tensors, more={"lm_head.weight": 2 * tensors["wte.weight"]})
  with pytest.raises(UserError, match="lm_head.weight differs from wte.weight, and tie_word_embeddings says"):
    entropy_attn.load(tmp_path)


def _damage(name, folder):
  whole = folder / "model.safetensors"
  index = folder / "model.safetensors.index.json"
  if name == "cut short":
    whole.write_bytes(whole.read_bytes()[:-8])
  elif name == "no weights":
    whole.unlink()
  elif name == "PyTorch's":
    whole.rename(folder / "pytorch_model.bin")
  elif name == "integers":
    more = {"transformer.ln_f.bias": np.zeros(8, np.int8)}
    gpt2.write(folder, more=more)
  elif name == "no config":
    (folder / "config.json").write_text("{")
  elif name == "a run's config cut short":
    (folder / "config.json").write_text("{}")
  else:
    whole.unlink()
    gpt2.write(folder, shards=2)
    if name == "a shard is missing":
      next(folder.glob("model-00002*")).unlink()
    elif name == "a shard elsewhere":
      index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    elif name == "a shard of less":
      index.write_text(index.read_text().replace("model-00002", "model-00001"))
    else:
      index.write_text("[]")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cut short", "model.safetensors is damaged or cut short"),
    ("no weights", "holds no weights (neither model.safetensors nor model.safetensors.index.json)"),
    ("PyTorch's", "holds its weights as pytorch_model.bin, and not as model.safetensors: convert them once"),
    ("integers", "transformer.ln_f.bias is of I8, not one of F32, F16, BF16, F64"),
    ("no config", "config.json"),
    ("a run's config cut short", "no checkpoint under"),
    ("a shard is missing", "names model-00002-of-00002.safetensors, which is not in its folder"),
    ("a shard elsewhere", "names ../model-00002-of-00002.safetensors, which is not in its folder"),
    ("a shard of less", "does not hold "),
    ("a damaged index", "model.safetensors.index.json cannot be read"),
  ],
)
def test_a_damaged_folder_is_told_in_one_line(name, message, tmp_path):
  _damage(name, gpt2.write(tmp_path))
  with pytest.raises(UserError) as found:
    entropy_attn.load(tmp_path)
  assert message in str(found.value) and str(tmp_path) in str(found.value) and "\n" not in str(found.value)


def test_what_names_no_model_says_so(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  for name in ("nowhere", "runs", "runs/mistyped", "./owner/name", "~/nobody/x"):
    with pytest.raises(UserError, match="holds no run"):
      entropy_attn.load(name)
  with pytest.raises(UserError, match="names no file or folder"):
    entropy_attn.load("")
  with pytest.raises(UserError, match="step=3: .* holds one model and no checkpoints"):
    entropy_attn.load(gpt2.write(tmp_path / "gpt2"), 3)


def test_a_name_on_the_hub_is_read_from_its_cache_and_one_that_is_not_there_is_told(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
  kept = tmp_path / "hub" / "models--someone--tiny"
  gpt2.write(kept / "snapshots" / "abc")
  (kept / "refs").mkdir()
  (kept / "refs" / "main").write_text("abc")
  assert entropy_attn.load("someone/tiny").config.model.vocab_size == 23
  assert source.read_config("someone/tiny").model.d_model == 8
  with pytest.raises(UserError) as found:
    entropy_attn.load("distilgpt2")
  assert "distilgpt2: there is no folder of that name here, and the Hub cannot be reached" in str(found.value)
  assert "is not in its local cache" in str(found.value) and "\n" not in str(found.value)


def test_the_tokenizer_is_the_folders_own(tmp_path):
  model = entropy_attn.load(gpt2.write(tmp_path))
  with pytest.raises(UserError, match="holds no tokenizer .tokenizer.json, or vocab.json with merges.txt"):
    _ = model.tokenizer
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(23)}, unk_token="w0"))
  words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  words.save(str(tmp_path / "tokenizer.json"))
  assert model.tokenizer.encode_batch(["w3 w7"]) == [[3, 7]]
  assert model.sequences(2, 5).shape == (2, 5)
  (tmp_path / "tokenizer.json").write_text(words.to_str().replace('"w22":22', '"w22":23'))
  with pytest.raises(UserError, match="the tokenizer has ids up to 23, and the model 23 tokens"):
    _ = entropy_attn.load(tmp_path).tokenizer


def test_the_settings_of_gpt2_and_distilgpt2_as_published_are_read():
  known = json.loads(pathlib.Path(__file__).with_name("gpt2_config.json").read_text())
  read = [settings.of_gpt2(said, "x")[0].model for said in known]
  assert [(m.num_layers, m.vocab_size, m.gelu) for m in read] == [(12, 50_257, "tanh"), (6, 50_257, "tanh")]
