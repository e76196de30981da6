"""Heads that are taken for uniform: exact where they are, and cheaper."""

import dataclasses

import numpy as np
from private.models import ARCHITECTURES, logits_of, make, tokens_of
import pytest

from entropy_attn.config import codeparrot
from entropy_attn.private.price import predict
from entropy_attn.private.program import build, ops, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib

FINE = squares.exponential(1e-4, -16.0)


@pytest.mark.parametrize("heads", [pytest.param("0.1", marks=pytest.mark.slow), "0.0+0.1+1.0"])
def test_heads_that_are_uniform_keep_the_logits(heads):
  config, variables = make(ARCHITECTURES["SM+LN+R"])
  width = config.model.d_model // config.model.num_heads
  for layer, head in (map(int, one.split(".")) for one in heads.split("+")):
    columns = slice(head * width, (head + 1) * width)
    for array in variables["params"]["blocks"]["q"].values():
      array[layer, ..., columns] = 0.0
  transforms = dataclasses.replace(spec_lib.transforms_for(config.model), uniform_heads=heads)
  model = weights_lib.fold(variables, config.model, transforms, (FINE, FINE))
  tokens, kept, past = tokens_of(config), {}, 0
  true = logits_of(config, variables, tokens)
  for part in (tokens[:7], tokens[7:8], tokens[8:]):
    built = build.build(model.spec, len(part), past=past)
    inputs = build.server_inputs(model.weights, len(part), past) | build.client_inputs(model.spec, part) | kept
    outputs = ops.run_plain(built, inputs)
    past += len(part)
    np.testing.assert_allclose(outputs["logits"], true[past - 1 : past], atol=2e-4)
    kept = {f"past.{name}": outputs[name] for name in built.kept}


def test_uniform_heads_cost_less():
  config = codeparrot("T128", "scfuffn")
  texts = ("", "uniform_heads=0.1+0.5+0.8+0.11")
  whole, less = (predict.of_config(config, spec_lib.transforms_for(config.model, text))["by_layer"] for text in texts)
  assert less["1"]["bytes"] == whole["1"]["bytes"]
  assert 0.65 < less["0"]["bytes"] / whole["0"]["bytes"] < 0.75  # projections stay
