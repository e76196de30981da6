"""The likeliest token, and the K likeliest, are numpy's; on open values."""

import dataclasses
import functools

import numpy as np
from private.models import LINEAR, make, tokens_of
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.price import predict
from entropy_attn.private.program import build, ops, ranges, reveal, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.spec import Spec
from entropy_attn.private.program.types import NARROW

PLAIN = ops.Plain(None)


# So few of some levels that many are equal.
@pytest.mark.parametrize("size,k,levels", [(1, 1, 3), (3, 2, 10**6), (1025, 64, 10**6), (3001, 3, 100)])
def test_the_largest_are_found_and_once_where_some_are_equal(size, k, levels):
  rng = np.random.default_rng(size)
  x_V = (rng.integers(-levels, levels, size) * (300.0 / levels)).astype(np.float32)
  (winner,) = reveal.Likeliest()(PLAIN, x_V)
  assert x_V[winner] == x_V.max()
  values, places = np.asarray(reveal.Top(k)(PLAIN, np.stack([-x_V, x_V])))
  np.testing.assert_array_equal(values, np.sort(x_V)[::-1][:k])
  np.testing.assert_array_equal(x_V[places.astype(int)], values)
  assert len(set(places)) == k


@functools.cache
def folded():
  config, variables = make(LINEAR)
  fit = squares.exponential(1e-4, -16.0)
  return config, weights_lib.fold(variables, config.model, spec_lib.transforms_for(config.model), (fit, fit))


def model_of(**revealed):
  config, model = folded()
  return config, dataclasses.replace(model, spec=model.spec.revealing(**revealed))


def outputs_of(config, model):
  tokens = tokens_of(config)
  program = build.build(model.spec, len(tokens))
  inputs = build.server_inputs(model.weights, len(tokens)) | build.client_inputs(model.spec, tokens)
  return {name: np.asarray(value) for name, value in ops.run_plain(program, inputs).items() if "." not in name}


def test_nothing_but_what_is_to_be_revealed_is_an_output():
  config, model = model_of(reveal="logits")
  whole = outputs_of(config, model)
  assert set(whole) == {"logits", "impossible"}
  (logits_V,) = whole["logits"]
  config, model = model_of(reveal="argmax")
  found = outputs_of(config, model)
  assert set(found) == {"token", "impossible"} and found["token"].tolist() == [np.argmax(logits_V)]
  assert build.build(model.spec, 12, every_position=True).outputs == ("logits", "impossible")
  config, model = model_of(reveal="top_k", top_k=5)
  found = outputs_of(config, model)
  assert set(found) == {"top", "impossible"}
  np.testing.assert_array_equal(found["top"][1], np.argsort(-logits_V)[:5])


def test_logits_that_a_narrow_ring_compares_fit_it():
  config, model = model_of(reveal="argmax")
  found = ranges.measure(model, tokens_of(config)[None])
  assert [r.limit for r in found if r.name == "logits"] == [ranges.LIMITS[NARROW]]


def test_a_spec_tells_what_is_revealed():
  _, model = model_of(reveal="top_k", top_k=5)
  assert Spec.from_json(model.spec.to_json()) == model.spec
  for changes, message in (
    ({"reveal": "all"}, "reveal='all' is not one of argmax, top_k, logits"),
    ({"reveal": "top_k", "top_k": 42}, "top_k=42 must be between 1 and 41"),
    ({"reveal": "top_k", "top_k": 0}, "top_k=0 must be between 1 and 41"),
  ):
    with pytest.raises(UserError, match=message):
      Spec.from_json(dataclasses.replace(model.spec, **changes).to_json())


def test_what_is_revealed_is_priced():
  config, _ = model_of(reveal="logits")
  of = lambda **revealed: predict.of_config(config, spec_lib.transforms_for(config.model), **revealed)
  logits, token, top = of(), of(reveal="argmax"), of(reveal="top_k", top_k=5)
  assert "choice" not in logits["by_operation"]
  assert 0 < token["by_operation"]["choice"]["bytes"] < top["by_operation"]["choice"]["bytes"] < 2e5
  assert token["by_operation"]["reveal"]["bytes"] < logits["by_operation"]["reveal"]["bytes"]
