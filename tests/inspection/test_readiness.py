"""The verdict on private inference: statistics as computed independently in float64, and models that do not fit."""

import math

import jax
import numpy as np
import oracles
import pytest

from entropy_attn.inspection import readiness, tables
from entropy_attn.private.program import prepare, ranges, spec

pytestmark = pytest.mark.slow  # each operation of the private form is compiled by itself


@pytest.fixture(scope="module")
def tokens(model):
  return model.sequences(2, 16)


@pytest.fixture(scope="module")
def ready(model, tokens):
  return readiness.judge(model, tokens)


def scaled(model, *path, by):
  variables = jax.tree.map(np.array, model.variables)
  place = variables["params"]
  for name in path[:-1]:
    place = place[name]
  place[path[-1]] = place[path[-1]] * by
  return type(model)(model.config, variables, model.folder, model.step)


def reached(params, c, tokens_SxN):
  """Of each layer: largest residual, |score|, lowest exponent, variances, largest activation input; in float64."""
  p, found = oracles._to_float64(params), []
  H, D = c.num_heads, c.d_model
  N = tokens_SxN.shape[1]
  x = p["token_embedding"][tokens_SxN] * (math.sqrt(D) if c.scale_embeddings else 1.0) + p["position_embedding"][:N]
  for l in range(c.num_layers):
    block, residual, variances = oracles._layer(p["blocks"], l), [np.abs(x).max()], [x.var(-1)]
    h = oracles._layer_norm(x, block["ln_attn"], c.layer_norm_epsilon)
    q, k, v = (oracles._linear(h, block[name]).reshape(*h.shape[:2], H, D // H) for name in "qkv")
    scores = np.einsum("bthk,bshk->bhts", q, k) / math.sqrt(D // H)
    causal = np.tril(np.ones((N, N), bool))
    exponent = np.where(causal, scores - np.where(causal, scores, -np.inf).max(-1, keepdims=True), 0)
    x = x + oracles._linear(oracles.attention(q, k, v)[0].reshape(x.shape), block["o"])
    residual.append(np.abs(x).max())
    variances.append(x.var(-1))
    up = oracles._linear(oracles._layer_norm(x, block["ln_ffn"], c.layer_norm_epsilon), block["up"])
    x = x + oracles._linear(oracles._activate(up, c), block["down"])
    variances = np.stack(variances)
    reads, scores = np.abs(up).max(), np.abs(np.where(causal, scores, 0)).max()
    names = ("residual", "score", "exponent", "variance", "activation")
    values = (max(residual), scores, exponent.min(), (variances.min(), variances.max()), reads)
    found.append(dict(zip(names, values, strict=True)))
  return found


def test_statistics_are_those_of_the_model_itself(model, tokens, ready):
  expected = reached(model.variables["params"], model.config.model, tokens)
  assert [of["layer"] for of in ready["layers"]] == [0, 1, None]
  for of, want in zip(ready["layers"], expected, strict=False):
    for name, value in want.items():
      assert of[name] == pytest.approx(value, rel=1e-3), name
  assert ready["layers"][-1]["variance"] is not None and ready["layers"][-1]["activation"] is None


def test_a_model_that_fits_is_ready_and_the_tightest_place_is_named(model, tokens, ready):
  assert ready["ready"] is True and ready["outside"] == []
  _, _, found = prepare.fit(model, spec.transforms_for(model.config.model), tokens)
  bounded = ("exponential", "reciprocal", "division", "check")
  tightest = min((r for r in found if r.kind not in bounded), key=lambda r: r.spare_bits)
  assert ready["tightest"]["place"] == tightest.place and tightest.place in ready["text"]
  assert all(of["fits"] for of in ready["layers"])
  assert (ready["sequences"], ready["length"]) == (2, 16)
  assert len(tables.layers(ready)[1]) == 3


def test_a_stream_that_overflows_is_not_ready_and_its_layer_is_named(model, tokens):
  found = readiness.judge(scaled(model, "blocks", "down", "kernel", by=np.array([1, 1e8])[:, None, None]), tokens)
  assert found["ready"] is False
  assert found["text"].startswith("not ready: ") and "reaches" in found["text"]
  assert [of["fits"] for of in found["layers"]] == [True, False, False]
  assert any("layer 1" in line for line in found["outside"])


def test_scores_beyond_their_ring_are_not_ready(model, tokens):
  found = readiness.judge(scaled(model, "blocks", "q", "kernel", by=1e5), tokens)
  assert found["ready"] is False
  assert any(line.startswith("maximum") and "layer 0" in line for line in found["outside"])
  assert found["layers"][0]["score"] > 1e4


def test_a_variance_below_the_step_of_fixed_point_is_not_ready(model, tokens):
  small = scaled(scaled(model, "token_embedding", by=1e-3), "position_embedding", by=1e-3)
  found = readiness.judge(small, tokens)
  assert found["ready"] is False and found["layers"][0]["variance"][0] < ranges.LEAST_VARIANCE
  assert any("LayerNorm of layer 0 divides by a variance" in line for line in found["outside"])


def test_what_is_not_a_number_is_not_ready(model, tokens):
  found = readiness.judge(scaled(model, "blocks", "o", "kernel", by=np.nan), tokens)
  assert found["ready"] is False and "inf" in found["text"]


def test_a_model_without_a_private_form_says_why(model, tokens):
  fade = {"curriculum": {"blocks": {"ln_attn": {"fade": np.full(2, 0.5)}}}}
  fading = type(model)(model.config, model.variables | fade, model.folder, model.step)
  found = readiness.judge(fading, tokens)
  assert found["ready"] is None and found["text"].startswith("cannot be judged: ")
