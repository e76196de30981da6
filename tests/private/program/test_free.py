"""What a model may have at no price: it folds exactly, and the private program takes the bytes that it took before."""

import dataclasses

import numpy as np
from private.models import ARCHITECTURES, LINEAR, config_of, logits_of, make, tokens_of
import pytest

from entropy_attn.private.price import predict
from entropy_attn.private.program import build, ops
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib

TEMPERED = LINEAR | {"temperature": "per_head", "temperature_init": 0.5}
FREE = {
  "sigma": {"reparam": "sigma", "reparam_targets": "qkvo+ffn"},
  "value_residual": {"value_residual": "fixed"},
  "ffns_removed": {"ffns_removed": 1},
  "attention_out_init": {"attention_out_init": "depth_scaled"},
  "alpha": {"alpha_init": 10.0},
  "all": {
    "reparam": "sigma", "reparam_targets": "qkvo+ffn", "value_residual": "fixed", "ffns_removed": 1,
    "attention_out_init": "depth_scaled", "beta_init": 0.5, "alpha_init": 10.0,
  },
}  # fmt: skip


def folded(config, variables, transforms=None):
  """The logits [N, V] of a model's folded weights, on open values without approximations."""
  transforms = (transforms or spec_lib.transforms_for(config.model)).exactly()
  model = weights_lib.fold(variables, config.model, transforms, ())
  tokens = tokens_of(config)
  program = build.build(model.spec, len(tokens), every_position=True)
  inputs = build.server_inputs(model.weights, len(tokens)) | build.client_inputs(model.spec, tokens)
  return np.asarray(ops.run_plain(program, inputs)["logits"]), model


def prices(config):
  """(bytes in all, bytes with the prompt, rounds) of an inference."""
  found = predict.of_config(config, spec_lib.transforms_for(config.model), offline=True)
  return found["total_bytes"], found["online"]["bytes"], found["rounds"], found["online"]["rounds"]


@pytest.mark.parametrize("family", [pytest.param("codeparrot", marks=pytest.mark.slow), "languini"])
@pytest.mark.parametrize("name", FREE)
def test_it_folds_exactly(name, family):
  config, variables = make(TEMPERED | FREE[name], family, num_layers=3)
  ours, _ = folded(config, variables)
  true = logits_of(config, variables, tokens_of(config))
  np.testing.assert_allclose(ours, true, rtol=1e-5, atol=1e-5 * np.abs(true).max())


@pytest.mark.parametrize("name", FREE)
def test_it_costs_nothing(name):
  plain, free = (config_of(TEMPERED | fields, num_layers=3) for fields in ({}, FREE[name]))
  assert prices(free) == pytest.approx(prices(plain), rel=1e-12)


def test_removed_ffns_save_bytes_only_where_they_were_not_eliminated():
  price = lambda fields, **more: prices(config_of(fields | more, num_layers=3))[0]
  assert price({}, ffns_removed=1) < price({})  # LayerNorm and GELU go with them
  assert price(LINEAR, ffns_removed=2) == price(LINEAR)
  # Where none is left there is no basis to go back from: the one product that eliminating them costs.
  assert price(LINEAR, ffns_removed=3) < price(LINEAR)


@pytest.mark.parametrize("removed", [1, 3])
def test_layers_without_ffn_have_none_in_the_program(removed):
  config, variables = make({"ffns_removed": removed}, num_layers=3)
  ours, model = folded(config, variables)
  assert model.kept_ffns == tuple(range(3 - removed))
  assert not any(name.startswith(f"{l}.ffn") for l in range(3 - removed, 3) for name in model.weights)
  np.testing.assert_allclose(ours, logits_of(config, variables, tokens_of(config)), atol=1e-4)


def test_what_a_config_tells_is_what_the_weights_make():
  for fields in (FREE["all"], {"ffns_removed": 2}):
    config, variables = make(LINEAR | {"bias": "none"} | fields, num_layers=2)
    transforms = spec_lib.transforms_for(config.model).exactly()
    _, model = folded(config, variables)
    assert model.spec.head_biases == ("head",)  # the final norm's own, of which a config does not tell
    told = spec_lib.of_config(config.model, transforms)
    assert dataclasses.replace(model.spec, head_biases=()) == told
    assert spec_lib.Spec.from_json(model.spec.to_json()) == model.spec


@pytest.mark.slow
def test_value_residuals_go_on_from_a_cache():
  config, variables = make(ARCHITECTURES["SM+VRes+ScFuFFN(−1)"], num_layers=3)
  _, model = folded(config, variables)
  tokens, kept, past, logits = tokens_of(config), {}, 0, []
  for part in (tokens[:5], tokens[5:6], tokens[6:]):
    program = build.build(model.spec, len(part), past=past)
    inputs = build.server_inputs(model.weights, len(part), past) | build.client_inputs(model.spec, part) | kept
    outputs = ops.run_plain(program, inputs)
    kept = {f"past.{name}": outputs[name] for name in program.kept}
    logits.append(outputs["logits"][-1])
    past += len(part)
  true = logits_of(config, variables, tokens)
  np.testing.assert_allclose(np.stack(logits), true[[4, 5, 11]], atol=1e-4)
