"""Models of a run's folder: its variables alone are restored, as they were saved, whatever the optimizer was."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from trees import assert_equal

import entropy_attn
from entropy_attn import config as config_lib
from entropy_attn import sharding
from entropy_attn.errors import UserError
from entropy_attn.model import GPT
from entropy_attn.run import checkpoint, folder, pretrained
from entropy_attn.train_step import abstract_state, init_state

SIZE = {"num_layers": 2, "num_heads": 2, "d_model": 16, "context_length": 8, "max_positions": 8, "vocab_size": 300}
FIELDS = {
  "ereg": {},
  "snorm": {"reparam_targets": "qkvo+ffn"},
  "ln_gelu": {"tie_embeddings": False, "bias": "all"},
}


def config_of(architecture, corpus):
  c = config_lib.codeparrot("quick", architecture)
  c.model.update(SIZE | FIELDS[architecture])
  c.data.update(name="text_files", path=str(corpus["data.path"]), data_dir=str(corpus["data.data_dir"]))
  config_lib.validate(c)
  return c


def make_run(workdir, config, steps=(3,)):
  """A run's folder with a checkpoint at each step; returns the states."""
  folder.record(workdir, config)
  checkpoints, states = checkpoint.Checkpoints(workdir, config), {}
  for step in steps:
    state = jax.jit(lambda seed=step: init_state(with_seed(config, seed)))()
    states[step] = state.replace(step=jnp.int32(step))
    checkpoints.save(step, states[step], {"next": step})
  checkpoints.close()
  return states


def with_seed(config, seed):
  config = config.copy_and_resolve_references()
  config.train.seed = seed
  return config


@pytest.mark.parametrize("architecture", FIELDS)
def test_a_model_is_what_was_saved(architecture, corpus, tmp_path):
  config = config_of(architecture, corpus)
  states = make_run(tmp_path, config)
  model = entropy_attn.load(tmp_path)
  assert_equal(model.variables, jax.device_get(states[3].variables))
  assert (model.step, model.folder) == (3, tmp_path)
  logits_BxTxV, out = GPT(model.config).apply(model.variables, jnp.arange(8)[None])
  assert logits_BxTxV.shape == (1, 8, 300) and out["entropy"].shape == (2, 1, 8, 2)
  assert config_lib.architecture_name(config) in model.description


def test_its_tokenizer_is_that_of_its_text(corpus, tmp_path):
  make_run(tmp_path, config_of("ereg", corpus))
  tokenizer = pretrained.load(str(tmp_path)).tokenizer
  assert tokenizer.vocab_size == 300
  (ids,) = tokenizer.encode_batch(["def f(x):"])
  assert tokenizer.decode(ids) == "def f(x):"


def test_a_step_is_chosen_and_a_damaged_one_is_passed_over(corpus, tmp_path):
  states = make_run(tmp_path, config_of("ereg", corpus), steps=(2, 5))
  assert entropy_attn.load(tmp_path).step == 5
  assert_equal(entropy_attn.load(tmp_path, step=2).variables, jax.device_get(states[2].variables))
  with pytest.raises(UserError, match="no checkpoint of step 4 under .*; there are 5, 2"):
    entropy_attn.load(tmp_path, step=4)
  for step in ("5", "2"):
    for path in (tmp_path / "checkpoints" / step / "state").rglob("d/*"):
      path.write_bytes(path.read_bytes()[:10])
    if step == "5":
      assert entropy_attn.load(tmp_path).step == 2
  with pytest.raises(UserError, match="none of the 2 checkpoints under .* can be read"):
    entropy_attn.load(tmp_path)


def test_what_is_no_run_is_named(corpus, tmp_path):
  with pytest.raises(UserError, match="nowhere holds no run"):
    entropy_attn.load(tmp_path / "nowhere")
  make_run(tmp_path, config_of("ereg", corpus))
  shutil.rmtree(tmp_path / "checkpoints")
  with pytest.raises(UserError, match="no checkpoint under"):
    entropy_attn.load(tmp_path)


def test_variables_are_restored_onto_another_mesh(corpus, tmp_path):
  config = config_of("ln_gelu", corpus)
  states = make_run(tmp_path, config)
  config.mesh.update({"data": 1, "fsdp": 4, "tensor": 2})
  mesh = sharding.make_mesh(config)
  variables, step = checkpoint.restore_variables(tmp_path, abstract_state(config, mesh))
  assert step == 3
  kernel = variables["params"]["blocks"]["q"]["kernel"]
  assert kernel.addressable_shards[0].data.size * 8 == kernel.size
  assert_equal(jax.device_get(variables), jax.device_get(states[3].variables))


def test_an_untrained_model_is_the_configs_seed(corpus):
  config = config_of("ereg", corpus)
  model = pretrained.untrained(config)
  assert_equal(model.variables, jax.device_get(jax.jit(lambda: init_state(config))().variables))
  tokens = model.sequences(2, 8)
  assert tokens.shape == (2, 8) and tokens.max() < 300
