"""ReLU and GELU in the narrow ring: what they read has room there, or they stay in the wide one."""

import dataclasses

import numpy as np
from private.models import ARCHITECTURES, make
import pytest

from entropy_attn.private.program import prepare as prepare_lib
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import squares
from entropy_attn.private.program.build import build
from entropy_attn.private.program.types import NARROW, WIDE
from entropy_attn.run.pretrained import Pretrained


def prepared(factor, **changes):
  """A small SM+LN+R whose pre-activations are so many times as large."""
  config, variables = make(ARCHITECTURES["SM+LN+R"])
  up, down = (variables["params"]["blocks"][name] for name in ("up", "down"))
  up["kernel"], down["kernel"] = up["kernel"] * np.float32(factor), down["kernel"] / np.float32(factor)
  transforms = dataclasses.replace(spec_lib.transforms_for(config.model), **changes)
  return prepare_lib.prepare(Pretrained(config, variables, None, 0), transforms, 6).private


@pytest.mark.parametrize("factor,ring", [(1.0, "auto"), (1e5, "64")])
def test_an_activation_that_has_no_room_in_the_narrow_ring_stays_in_the_wide_one(factor, ring):
  assert prepared(factor).spec.transforms.activation_ring == ring


def test_the_tail_of_gelu_squares_nothing_that_reaches_one():
  tail = squares.gelu_tail()
  z = tail.scale * np.linspace(tail.low, tail.high, 999) + tail.start
  for offset in tail.offsets:
    assert np.max(z * z) < 0.9
    z = z * z + offset
  assert np.max(np.abs(tail.gain * z)) < 0.9 and tail.scale * tail.high < 0.9


def test_only_cheap_activations_go_through_the_narrow_ring():
  chain = squares.with_squares(3, -4.0)
  for name, changes, rings in (
    ("SM+LN+R", {}, [WIDE, NARROW, WIDE, WIDE]), ("SM+LN+G", {}, [WIDE, NARROW, WIDE, WIDE]),
    ("SM+LN+G", {"gelu": "exact"}, [WIDE]), ("SM+LN+R", {"activation_ring": "64"}, [WIDE]),
    ("SM+LN+R", {"exponential": "engine", "softmax_ring": "64", "division": "late"}, [WIDE]),
  ):  # fmt: skip
    config, _ = make(ARCHITECTURES[name])
    transforms = dataclasses.replace(spec_lib.transforms_for(config.model), **changes)
    chosen = (chain, chain) if transforms.exponential == "squares" else ()
    steps = build(spec_lib.of_config(config.model, transforms, chosen or (None, None)), 4).steps
    assert [step.ring for step in steps if step.kind == "activation" and step.layer == 0] == rings
