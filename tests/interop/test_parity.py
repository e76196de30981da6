"""GPT-2 in and out against `transformers`, on random weights: logits, every head's entropy, padding, positions."""

import json
import os
import pathlib
import subprocess
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interop import gpt2
import jax
import jax.numpy as jnp
import numpy as np
from private.models import logits_of, make, tokens_of
import pytest

import entropy_attn
from entropy_attn.interop import write
from entropy_attn.model import GPT

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
NOT_AVAILABLE = "installed by requirements-parity.txt"
CONFIGS = st.fixed_dictionaries({
  "n_layer": st.integers(1, 3), "n_head": st.sampled_from([1, 2, 4]), "n_embd": st.sampled_from([8, 16, 32]),
  "n_positions": st.sampled_from([12, 17]), "vocab_size": st.sampled_from([23, 64]),
  "n_inner": st.sampled_from([None, 20, 64]), "layer_norm_epsilon": st.sampled_from([1e-5, 1e-3]),
  "activation_function": st.sampled_from(["gelu_new", "gelu", "relu", "gelu_pytorch_tanh"]),
  "scale_attn_weights": st.booleans(), "scale_attn_by_inverse_layer_idx": st.booleans(),
  "reorder_and_upcast_attn": st.booleans(), "tie_word_embeddings": st.booleans(),
})  # fmt: skip


def made(seed=0, **fields):
  """A GPT2LMHeadModel of random weights, none of which is what a new model has."""
  torch, transformers = (pytest.importorskip(name, reason=NOT_AVAILABLE) for name in ("torch", "transformers"))
  torch.manual_seed(seed)
  plain = {"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**plain | fields)).eval()
  for parameter in model.parameters():
    parameter.data += 0.2 * torch.randn_like(parameter)
  return model


def said_by(model, tokens_BxT, **options):
  """(logits, entropies [L, B, T, H] of its attention matrices) of transformers, NumPy."""
  import torch

  options = {name: torch.from_numpy(value) for name, value in options.items()}
  with torch.no_grad():
    out = model(torch.from_numpy(tokens_BxT), output_attentions=True, **options)
  a_LxBxHxTxS = torch.stack(out.attentions).double()
  return out.logits.float().numpy(), -torch.xlogy(a_LxBxHxTxS, a_LxBxHxTxS).sum(-1).movedim(2, 3).numpy()


def ours(model, tokens_BxT, **options):
  apply = jax.jit(GPT(model.config).apply)
  logits, out = apply(model.variables, jnp.asarray(tokens_BxT), **{name: jnp.asarray(x) for name, x in options.items()})
  return np.asarray(logits), np.asarray(out["entropy"])


def tokens_for(fields, batch=2, length=12, seed=1):
  return np.random.default_rng(seed).integers(0, fields["vocab_size"], (batch, length), np.int64)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=CONFIGS, shard=st.sampled_from(["4KB", "5GB"]))
def test_any_gpt_2_in_and_out_again(tmp_path_factory, fields, shard):
  folder = tmp_path_factory.mktemp("gpt2")
  theirs = made(**fields)
  theirs.save_pretrained(folder / "in", max_shard_size=shard)
  model = entropy_attn.load(folder / "in")
  tokens = tokens_for(fields)
  true, found = said_by(theirs, tokens), ours(model, tokens)
  np.testing.assert_allclose(found[0], true[0], atol=1e-4)
  np.testing.assert_allclose(found[1], true[1], atol=1e-4)
  write.write(folder / "out", model.variables, model.config, form="gpt2", card="", made_of={})
  again = type(theirs).from_pretrained(folder / "out", attn_implementation="eager")
  saved, kept = again.state_dict(), theirs.state_dict()
  assert saved.keys() == kept.keys() and all((saved[name] == kept[name]).all() for name in kept)
  np.testing.assert_allclose(said_by(again, tokens)[0], true[0], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("whole", [True, False])
def test_half_precision_and_a_model_without_its_head(dtype, whole, tmp_path):
  torch = pytest.importorskip("torch", reason=NOT_AVAILABLE)
  fields = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 12}
  theirs = made(**fields).to(getattr(torch, dtype))
  (theirs if whole else theirs.transformer).save_pretrained(tmp_path)
  tokens = tokens_for(fields)
  true, found = said_by(theirs.float(), tokens), ours(entropy_attn.load(tmp_path), tokens)
  np.testing.assert_allclose(found[0], true[0], atol=1e-4)
  np.testing.assert_allclose(found[1], true[1], atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_positions_are_those_of_transformers(side, tmp_path):
  fields = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 40, "n_positions": 16, "layer_norm_epsilon": 1e-3}
  theirs = made(**fields)
  theirs.save_pretrained(tmp_path)
  tokens, lengths = tokens_for(fields, batch=3), np.array([12, 7, 1])
  column = np.arange(12)
  real = column < lengths[:, None] if side == "right" else column >= 12 - lengths[:, None]
  positions = np.where(real, np.cumsum(real, axis=1) - 1, 1)
  true = said_by(theirs, tokens, attention_mask=real.astype(np.int64), position_ids=positions)
  found = ours(entropy_attn.load(tmp_path), tokens, mask_BxT=real, positions_BxT=positions.astype(np.int32))
  np.testing.assert_allclose(found[0][real], true[0][real], atol=1e-4)
  np.testing.assert_allclose(found[1][:, real], true[1][:, real], atol=1e-4)
  np.testing.assert_array_equal(found[1][:, ~real], 0)


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"activation": "relu", "tie_embeddings": False, "bias": "all", "layer_norm_epsilon": 1e-3, "ffn_width": 24},
    {"activation": "identity", "score_scale": "root_width_and_layer", "scale_embeddings": True},
    {"temperature": "per_head", "temperature_init": 0.5, "reparam": "weight", "reparam_targets": "qkvo+ffn"},
  ],
  ids=str,
)
def test_a_baseline_of_ours_opens_in_transformers_with_the_same_logits(fields, tmp_path):
  transformers = pytest.importorskip("transformers", reason=NOT_AVAILABLE)
  config, variables = make(fields)
  write.write(tmp_path / "out", variables, config, form=write.form_of(variables, config), card="", made_of={})
  theirs, info = transformers.GPT2LMHeadModel.from_pretrained(
    tmp_path / "out", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(info.values()), info
  tokens = tokens_of(config)
  logits, _ = said_by(theirs, tokens[None].astype(np.int64))
  np.testing.assert_allclose(logits[0], logits_of(config, variables, tokens), atol=1e-4)


def test_the_commands_take_a_folder_of_hugging_face_and_write_one(tmp_path):
  gpt2.write(tmp_path / "in")
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

  def run(command, *flags):
    done = subprocess.run(
      [sys.executable, "-m", f"entropy_attn.{command}", *flags],
      cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  source = f"--checkpoint={tmp_path / 'in'}"
  assert "SM+LN+G, 8 tokens, predicted" in run("private.cost", source, "--length=8", f"--json={tmp_path / 'cost.json'}")
  assert json.loads((tmp_path / "cost.json").read_text())["total_bytes"] > 0
  out = tmp_path / "out"
  assert "(gpt2): transformers and entropy_attn.load open it" in run(
    "export", source, f"--to={out}", f"--json={tmp_path / 'e.json'}"
  )
  assert json.loads((tmp_path / "e.json").read_text())["format"] == "gpt2"
  first, second = entropy_attn.load(tmp_path / "in"), entropy_attn.load(out)
  jax.tree.map(np.testing.assert_array_equal, second.variables, first.variables)
