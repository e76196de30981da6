"""Transforms chosen for a line: no change makes them faster, and what was chosen is what is priced."""

import json

from absl import flags as absl_flags
import pytest

from entropy_attn import config as config_lib
from entropy_attn.private import flags
from entropy_attn.private.price import lines, predict
from entropy_attn.private.price.plan import CHOICES, plan, text
from entropy_attn.private.program.spec import Transforms, parse_transforms, transforms_for

FAR, NARROW = (100.0, 80.0), (5.0, 0.05)


def small(architecture="scfuffn", **changes):
  config = config_lib.codeparrot("quick", architecture)
  config.model.update({"num_layers": 2} | changes)
  return config


def planned(line, config, transforms, **options):
  tried = []
  found = plan(config, transforms, line, 32, offline=True, on_try=tried.append, **options)
  assert tried
  return found


def online(config, transforms, line):
  result = predict.of_config(config, transforms, 32, offline=True)
  return lines.latencies(result, {"line": line})["online_latency_seconds"]["line"]


def test_rounds_count_on_a_far_line_and_bytes_on_a_narrow_one():
  config = small()
  transforms = transforms_for(config.model)
  assert "maximum=fours" in planned(FAR, config, transforms)["transforms"]
  assert "fours" not in planned(NARROW, config, transforms)["transforms"]


@pytest.mark.parametrize("line", [FAR, NARROW])
def test_a_plan_says_what_each_choice_saves_and_leaves_none_that_saves_more(line):
  config = small("ln_relu")
  begun = transforms_for(config.model)
  found = planned(line, config, begun)
  chosen = parse_transforms(found["transforms"], begun)
  steps = [online(config, begun, line), *(choice["after"] for choice in found["chosen"])]
  assert [choice["before"] for choice in found["chosen"]] == pytest.approx(steps[:-1])
  assert found["result"]["online"]["bytes"] == predict.of_config(config, chosen, 32, offline=True)["online"]["bytes"]
  assert online(config, chosen, line) == pytest.approx(steps[-1])
  for name, values in CHOICES.items():
    for value in values:
      other = parse_transforms(text({name: value}), chosen)
      assert online(config, other, line) > 0.99 * steps[-1]


def test_what_was_asked_for_stays_and_is_told_where_it_is_changed():
  config = small()
  begun = transforms_for(config.model, "embedding=one_hot,maximum=fours")
  found = planned(NARROW, config, begun)
  assert "maximum=pairs" in found["transforms"] and "one_hot" not in found["transforms"]
  chosen = parse_transforms(found["transforms"], begun)
  assert chosen.embedding == "one_hot" and chosen.maximum == "pairs"


def test_a_plan_is_read_back_by_the_commands(tmp_path, monkeypatch):
  path = tmp_path / "plan.json"
  path.write_text(json.dumps({"plan": {"transforms": "maximum=fours,division=late", "error": 0.01}}))
  values = absl_flags.FlagValues()
  monkeypatch.setattr(flags, "FLAGS", values)
  monkeypatch.setattr(flags.flags, "FLAGS", values)
  absl_flags.DEFINE_string("plan", None, "", flag_values=values)
  absl_flags.DEFINE_string("transforms", "division=narrow", "", flag_values=values)
  absl_flags.DEFINE_float("error", 5e-3, "", flag_values=values)
  values(["command"])
  values.plan = path
  model = small().model
  wanted = transforms_for(model, "maximum=fours,division=narrow")
  assert flags.transforms_of(model) == wanted != Transforms()
  assert flags.error() == 0.01
