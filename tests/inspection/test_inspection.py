"""Entropies of a text equal those of explicit attention matrices, window by window; what follows from them; memory."""

import json
import math
import tracemalloc

import jax
import numpy as np
import oracles
import pytest

from entropy_attn import config as config_lib
from entropy_attn import inspect as command
from entropy_attn.errors import UserError
from entropy_attn.inspection import measure, tables, text, whole
from entropy_attn.run import metrics

WRITTEN = "def square(x):\n  return x * x  # naïve\n\n\nprint(square(12), 'done')\n"


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "a.py"
  path.write_text(WRITTEN)
  return whole.inspect(model, path, kept=1000, judged=0)


@pytest.fixture(scope="module")
def explicit(model):
  """Of each window: (begin, entropies [L, T, H], losses of its rows), by explicit matrices in float64."""
  (ids,) = model.tokenizer.encode_batch([WRITTEN])
  windows, found = text.of_ids("a.py", ids, 16), []
  for begin in windows.begins_W:
    ids_1xT = windows.ids_N[None, begin : begin + 16]
    logits, entropy = oracles.gpt(model.variables["params"], model.config.model, ids_1xT)
    logits = logits[0] - logits[0].max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    found.append((begin, entropy[:, 0], log_p))
  return windows, found


def test_entropies_are_those_of_explicit_attention_matrices(found, explicit):
  windows, of_windows = explicit
  assert found["windows"] == len(of_windows) > 3
  every = np.stack([entropy for _, entropy, _ in of_windows])
  np.testing.assert_allclose(found["entropy_LxH"], every.mean(axis=(0, 2)), atol=2e-5)
  kept, at = found["kept"], 0
  for (begin, entropy, _), first in zip(of_windows, windows.firsts_W, strict=True):
    own = kept["entropy_LxHxN"][:, :, begin + first : begin + 16]
    np.testing.assert_allclose(own, np.moveaxis(entropy[:, first:], 1, 2), atol=2e-5)
    assert kept["positions"][begin + first : begin + 16].tolist() == list(range(first, 16))
    at += own.shape[2]
  assert at == found["tokens"] == len(windows.ids_N)
  assert "".join(kept["strings"]) == WRITTEN


def test_the_loss_is_of_each_token_in_its_own_window(found, explicit):
  windows, of_windows = explicit
  losses = [
    -log_p[row, windows.ids_N[begin + row + 1]]
    for (begin, _, log_p), first in zip(of_windows, windows.firsts_W, strict=True)
    for row in range(first, 16)
    if begin + row + 1 < len(windows.ids_N)
  ]
  assert len(losses) == found["predicted"] == found["tokens"] - 1
  assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
  assert found["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
  first = len(found["kept"]["strings"][0].encode())
  assert found["bytes"] == len(WRITTEN.encode()) - first
  assert found["bits_per_byte"] == pytest.approx(sum(losses) / found["bytes"] / math.log(2), rel=1e-5)


def test_the_profile_is_the_mean_by_tokens_read(found, explicit):
  rows = np.stack([entropy for _, entropy, _ in explicit[1]])  # W, L, T, H
  assert [(of["first"], of["last"]) for of in found["profile"]] == [(2, 2), (3, 4), (5, 8), (9, 16)]
  for of in found["profile"]:
    part = rows[:, :, of["first"] - 1 : of["last"]]
    np.testing.assert_allclose(of["entropy_LxH"], part.mean(axis=(0, 2)), atol=2e-5)
    assert of["entropy"] == pytest.approx(part.mean(), abs=2e-5)
    assert of["ceiling"] == pytest.approx(np.mean([math.log(n) for n in range(of["first"], of["last"] + 1)]))
    assert of["entropy"] <= of["ceiling"]


def test_heads_are_named_by_their_quarter_of_one_max(found):
  entropy, largest = found["entropy_LxH"], config_lib.causal_ceiling(16)
  assert found["max_entropy"] == pytest.approx(largest)
  name = lambda chosen: {f"L{l}H{h}" for l, h in np.argwhere(chosen)}
  assert set(found["collapsed_heads"]) == name(entropy < largest / 4)
  assert set(found["overloaded_heads"]) == name(entropy >= 0.75 * largest)
  assert found["head_shares"][0] * 4 == len(found["collapsed_heads"])
  assert found["head_shares"][3] * 4 == len(found["overloaded_heads"])


def test_a_text_within_the_context_is_one_pass_of_the_model(model, tmp_path):
  path = tmp_path / "short.py"
  path.write_text("import x")
  found = whole.inspect(model, path, judged=0)
  (ids,) = model.tokenizer.encode_batch(["import x"])
  _, entropy = oracles.gpt(model.variables["params"], model.config.model, np.array([ids]))
  assert (found["windows"], found["width"]) == (1, len(ids))
  np.testing.assert_allclose(found["kept"]["entropy_LxHxN"], np.moveaxis(entropy[:, 0], 1, 2), atol=2e-5)
  assert found["max_entropy"] == pytest.approx(config_lib.causal_ceiling(len(ids)))


def test_without_a_text_it_is_the_runs_own_validation_sample(model):
  found = whole.inspect(model, None, kept=40, judged=0)
  sample = model.sequences(32, 16)
  _, entropy = oracles.gpt(model.variables["params"], model.config.model, sample)
  np.testing.assert_allclose(found["entropy_LxH"], entropy.mean(axis=(1, 2)), atol=2e-5)
  assert (found["tokens"], found["predicted"]) == (sample.size, len(sample) * 15)
  assert found["kept"]["positions"].tolist() == [i % 16 for i in range(40)]


@pytest.mark.slow
def test_what_is_kept_and_held_does_not_grow_with_the_text(model):
  """The batches are of one size: so is what is allocated beyond the ids, in a text of four times the length."""
  peaks = {}
  for length in (4_000, 4_000, 16_000):  # the first compiles
    windows = text.of_ids("a text", np.random.default_rng(0).integers(0, 300, length), 16)
    tracemalloc.start()
    found = measure.measure(model, windows, model.tokenizer, kept=100)
    peaks[length] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["kept"]["entropy_LxHxN"].shape == (2, 2, 100)
  assert peaks[16_000] < 1.5 * peaks[4_000]


def test_the_step_returns_no_matrix_of_attention(model):
  step = measure._jitted_step(measure.GPT(model.config.copy_and_resolve_references()))
  width = 13  # no other size of the model
  shapes = [(1, width), (1, width), (1, width), (1,)]
  kinds = (np.int32, np.int32, np.float32, np.float32)
  arrays = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
  out = jax.eval_shape(step, model.variables, *arrays)
  assert all(leaf.shape.count(width) <= 1 for leaf in jax.tree.leaves(out))


def test_heads_that_are_not_finite_are_told(model, tmp_path):
  broken = jax.tree.map(np.array, model.variables)
  broken["params"]["blocks"]["q"]["kernel"][1] = np.nan
  path = tmp_path / "a.py"
  path.write_text(WRITTEN)
  windows, tokenizer = text.open_windows(model, path)
  found = measure.measure(type(model)(model.config, broken, model.folder, 3), windows, tokenizer)
  assert np.isfinite(found["entropy_LxH"][0]).all() and np.isnan(found["entropy_LxH"][1]).all()
  assert found["nonfinite_rows_L"].tolist() == [0, len(windows) * 16 * 2]
  found |= {"model": "m", "text": "t", "own_text": False, "private": {"ready": None, "text": "not judged: off"}}
  assert "nan" in tables.text(found)
  assert json.loads(json.dumps(metrics.to_json(whole.rounded(found))))["entropy_LxH"][1] == [None, None]


def test_a_vocabulary_that_does_not_fit_is_said(model, tmp_path):
  path = tmp_path / "a.py"
  path.write_text(WRITTEN)
  smaller = type(model)(model.config.copy_and_resolve_references(), model.variables, model.folder, 3)
  smaller.config.model.vocab_size = 200
  with pytest.raises(UserError, match=r"the tokenizer makes token 2\d\d, and the model's vocabulary has 200 entries"):
    whole.inspect(smaller, path, judged=0)


def test_a_model_without_text_needs_one(model):
  untrained = type(model)(model.config, model.variables, None, 0)
  with pytest.raises(UserError, match=r"--text=FILE is missing: this model has no text of its own"):
    text.open_windows(untrained, None)


def test_the_command_is_not_the_standard_librarys_module():
  import inspect

  assert inspect.signature(command.main).parameters == {}
