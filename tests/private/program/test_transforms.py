"""Every transformation of a model, alone and together, leaves its logits as they were; on open values."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
from private.models import ARCHITECTURES, LINEAR, TYPICAL, config_of, logits_of, make, slow_but, tokens_of
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.program import build, ops, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.spec import STOCK, Spec, Transforms

FINE = squares.exponential(1e-4, -16.0)  # exact enough to see any other error
EXACT_GELU = {"gelu": "exact"}
WITHOUT = {
  "one_product": {"one_product": False},
  "last_position": {"last_position": False},
  "join_heads": {"join_heads": False},
  "join_queries": {"join_queries": False},
  "causal_blocks": {"causal_blocks": False},
  "diagonal": {"diagonal": True},
  "clamp": {"clamp": False},
  "checked": {"checked": False},
  "one_check": {"one_check": False},
  "embedding=one_hot": {"embedding": "one_hot"},
  "division=late": {"division": "late"},
  "division=narrow": {"division": "narrow"},
  "maximum=fours": {"maximum": "fours"},
  "activation_ring=64": {"activation_ring": "64"},
  "softmax_ring=64": {"softmax_ring": "64", "division": "late"},
  "exponential=engine": {"exponential": "engine", "softmax_ring": "64", "division": "late"},
  "triangle": {"exponential": "engine", "softmax_ring": "64", "division": "late", "triangle": False},
  "division=early": {"exponential": "engine", "softmax_ring": "64", "division": "early"},
  "eliminate_ffns": {"eliminate_ffns": False},
}


def transforms_of(config, **changes) -> Transforms:
  return dataclasses.replace(spec_lib.transforms_for(config.model), **EXACT_GELU | changes)


def run(config, variables, transforms, tokens, **options):
  """(logits, model, outputs) by the private program."""
  chosen = (FINE,) * config.model.num_layers if transforms.exponential == "squares" else ()
  model = weights_lib.fold(variables, config.model, transforms, chosen)
  built = build.build(model.spec, len(tokens), **options)
  inputs = build.server_inputs(model.weights, len(tokens)) | build.client_inputs(model.spec, tokens)
  assert {name: v.shape for name, v in built.inputs.items()} == {name: np.shape(inputs[name]) for name in built.inputs}
  outputs = ops.run_plain(built, inputs)
  return np.asarray(outputs["logits"]), model, outputs


@pytest.mark.parametrize("family", slow_but(["codeparrot"], ["codeparrot", "languini"]))
@pytest.mark.parametrize("name", slow_but(TYPICAL, ARCHITECTURES))
def test_all_together_and_none_at_all(name, family):
  config, variables = make(ARCHITECTURES[name], family)
  tokens = tokens_of(config)
  true = logits_of(config, variables, tokens)
  ours, _, outputs = run(config, variables, transforms_of(config), tokens, every_position=True)
  np.testing.assert_allclose(ours, true, atol=2e-4)
  assert outputs["impossible"] == 0
  stock, _, _ = run(config, variables, STOCK, tokens)
  np.testing.assert_allclose(stock, true, atol=2e-4)


@pytest.mark.parametrize("changes", WITHOUT.values(), ids=WITHOUT)
@pytest.mark.parametrize("name", slow_but(["SM(t_i)+ScFuFFN"], ["SM+LN+G", "SM(t_i)+ScFuFFN"]))
def test_each_transformation_alone(name, changes):
  config, variables = make(ARCHITECTURES[name])
  tokens = tokens_of(config, 3, length=9)
  true = logits_of(config, variables, tokens)
  ours, _, _ = run(config, variables, transforms_of(config, **changes), tokens)
  np.testing.assert_allclose(ours, true if not changes.get("last_position", True) else true[-1:], atol=2e-4)


def test_folding_leaves_no_temperature_scale_or_linear_ffn_in_the_program():
  config, variables = make(ARCHITECTURES["SM(t)+ScFuFFN"])
  _, folded, _ = run(config, variables, transforms_of(config), tokens_of(config))
  assert folded.kept_ffns == () and not any("ffn" in name or "temperature" in name for name in folded.weights)
  _, plain, _ = run(config, variables, STOCK, tokens_of(config))
  assert {"0.ffn", "0.alpha", "0.beta", "0.inverse_temperature"} <= set(plain.weights)


@pytest.mark.parametrize("bound,kept", [(1e6, ()), (1.0, (0, 1, 2))])
def test_ffns_stay_where_the_basis_would_be_conditioned_worse_than_the_bound(bound, kept):
  config, variables = make(LINEAR, num_layers=3)
  tokens = tokens_of(config)
  ours, model, _ = run(config, variables, transforms_of(config, condition_bound=bound), tokens)
  np.testing.assert_allclose(ours, logits_of(config, variables, tokens)[-1:], atol=2e-4)
  assert model.kept_ffns == kept
  assert all(condition <= bound for condition in model.condition_numbers)


def test_a_bound_between_keeps_some():
  config, variables = make(LINEAR, num_layers=4)
  _, free, _ = run(config, variables, transforms_of(config), tokens_of(config))
  bound = np.mean(free.condition_numbers[1:3])
  ours, model, _ = run(config, variables, transforms_of(config, condition_bound=bound), tokens_of(config))
  assert 0 < len(model.kept_ffns) < 4
  np.testing.assert_allclose(ours, logits_of(config, variables, tokens_of(config))[-1:], atol=2e-4)


@pytest.mark.parametrize("name", slow_but(["SM(t_i)+ScFuFFN"], ["SM+LN+R", "SM(t_i)+ScFuFFN"]))
def test_going_on_from_a_cache_is_as_the_whole(name):
  config, variables = make(ARCHITECTURES[name])
  tokens, transforms = tokens_of(config, 5), transforms_of(config)
  model = weights_lib.fold(variables, config.model, transforms, (FINE, FINE))
  kept, past, logits = {}, 0, []
  for part in (tokens[:7], tokens[7:8], tokens[8:11], tokens[11:]):
    built = build.build(model.spec, len(part), past=past)
    inputs = build.server_inputs(model.weights, len(part), past) | build.client_inputs(model.spec, part) | kept
    outputs = ops.run_plain(built, inputs)
    logits.append(outputs["logits"][-1])
    kept = {f"past.{name}": outputs[name] for name in built.kept}
    past += len(part)
  true = logits_of(config, variables, tokens)
  np.testing.assert_allclose(np.stack(logits), true[[6, 7, 10, 11]], atol=2e-4)


def test_what_does_not_fit_is_refused():
  config, variables = make(ARCHITECTURES["SM+LN+G"])
  chosen = (FINE, FINE)
  with pytest.raises(UserError, match="eliminate_ffns: an FFN vanishes only with model.norm=none"):
    weights_lib.fold(variables, config.model, Transforms(), chosen)
  spec = weights_lib.fold(variables, config.model, transforms_of(config), chosen).spec
  with pytest.raises(UserError, match="13 tokens are more than the 12 positions"):
    build.build(spec, 13)
  with pytest.raises(UserError, match="13 tokens are more"):
    build.build(spec, 1, past=12)
  for token in (-1, 41):
    with pytest.raises(UserError, match=f"token {token} is out of range: the model's vocabulary has 41 entries"):
      build.client_inputs(spec, np.array([3, token]))


@pytest.mark.parametrize(
  "text,message",
  [
    ("triangel=off", "transform='triangel' is not one of .*did you mean 'triangle'"),
    ("triangle=no", "transform triangle='no' is not one of on, off"),
    ("gelu=tanh", "transform gelu='tanh' is not one of squares, exact"),
    ("uniform_heads=1", "uniform_heads='1' is not of the form LAYER.HEAD"),
    ("condition_bound=much", "condition_bound='much' is not a number"),
  ],
)
def test_a_misspelt_transform_is_named(text, message):
  with pytest.raises(UserError, match=message):
    spec_lib.parse_transforms(text)


@pytest.mark.parametrize(
  "text,message",
  [
    ("fold=off", "eliminate_ffns=on needs fold=on"),
    ("fold=off,eliminate_ffns=off", "exponential=squares needs fold=on and triangle=on"),
    ("uniform_heads=0.1+2.0", "2.0 is none of 2 layers of 2 heads, counted from 0"),
    ("softmax_ring=64,division=narrow", "division=narrow needs softmax_ring=32"),
    ("exponential=engine", "softmax_ring=32 needs exponential=squares"),
    ("exponential=engine,softmax_ring=64,activation_ring=32", "activation_ring=32 needs exponential=squares"),
  ],
)
def test_contradicting_transforms_are_named(text, message):
  config, _ = make(LINEAR)
  with pytest.raises(UserError, match=message):
    spec_lib.of_config(config.model, spec_lib.transforms_for(config.model, text), (FINE, FINE))


def test_transforms_are_parsed_in_order():
  assert spec_lib.parse_transforms("stock") == STOCK
  assert spec_lib.parse_transforms("stock, triangle=on").triangle
  assert spec_lib.parse_transforms("condition_bound=20,embedding=one_hot") == dataclasses.replace(
    Transforms(), condition_bound=20.0, embedding="one_hot"
  )


@settings(max_examples=30, deadline=None)
@given(
  name=st.sampled_from(list(ARCHITECTURES)),
  flags=st.dictionaries(
    st.sampled_from(["one_product", "diagonal", "last_position", "clamp", "checked", "one_check"]), st.booleans()
  ),
)
def test_a_spec_survives_its_text(name, flags):
  config = config_of(ARCHITECTURES[name])
  spec = spec_lib.of_config(config.model, transforms_of(config, **flags), (FINE, FINE))
  assert Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}', '{"layers": [{}], "transforms": {}}'])
def test_what_is_no_spec_is_refused(text):
  with pytest.raises(UserError, match="not the description of a private model"):
    Spec.from_json(text)


def test_causality_by_gradient():
  """No logit of a position depends on a later token's embedding."""
  config, variables = make(LINEAR)
  tokens = tokens_of(config)
  model = weights_lib.fold(variables, config.model, transforms_of(config, embedding="one_hot"), (FINE, FINE))
  built = build.build(model.spec, len(tokens), every_position=True)
  inputs = build.server_inputs(model.weights, len(tokens)) | build.client_inputs(model.spec, tokens)

  def logits(one_hot):
    return ops.run_plain(built, inputs | {"one_hot": one_hot})["logits"].sum(axis=1)

  influence = np.abs(jax.jacobian(logits)(inputs["one_hot"].astype(np.float32))).max(axis=2)
  assert np.all(influence[np.triu_indices(len(tokens), 1)] == 0)
  assert np.all(influence[np.tril_indices(len(tokens))] > 0)
