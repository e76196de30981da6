"""A model made ready once, and its exact twin for any tokens."""

import dataclasses

import numpy as np
from private.models import ARCHITECTURES, logits_of, make, tokens_of
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.program import prepare as prepare_lib
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.run.pretrained import Pretrained


def model(name, **fields):
  config, variables = make(ARCHITECTURES[name] | fields)
  return Pretrained(config, variables, None, 0)


def test_a_model_is_folded_once_for_each_of_its_two_forms(monkeypatch):
  name = "SM(t_i)+ScFuFFN"
  folds, fold = [], prepare_lib.weights_lib.fold
  monkeypatch.setattr(prepare_lib.weights_lib, "fold", lambda *args: folds.append(args[2]) or fold(*args))
  source = model(name)
  transforms = spec_lib.transforms_for(source.config.model)
  private, exact, tightest = prepare_lib.prepare(source, transforms, 12)
  for seed, length in ((0, 12), (1, 12), (2, 5)):
    tokens = tokens_of(source.config, seed, length)
    true = logits_of(source.config, source.variables, tokens)
    np.testing.assert_allclose(exact.logits(tokens, every_position=True), true, atol=2e-4)
    np.testing.assert_allclose(exact.logits(tokens), true[-1:], atol=2e-4)
  assert folds == [transforms.exactly(), transforms]
  assert all(layer.exponential is not None for layer in private.spec.layers)
  assert tightest.spare_bits > 2


def test_contradicting_transforms_are_named_before_any_text_is_read():
  source = model("SM+LN+G")
  transforms = dataclasses.replace(spec_lib.transforms_for(source.config.model), eliminate_ffns=True)
  with pytest.raises(UserError, match="eliminate_ffns: an FFN vanishes only with"):
    prepare_lib.prepare(source, transforms, 10**9)  # no text is so long
