"""Every field of a config: declared once, as the code behind it implements it, and checked."""

import math
import pathlib
import re

from ml_collections import ConfigDict
import pytest

from entropy_attn import attention, config_file, curriculum, entropy, fields, model, optimizer, reparam, sizes
from entropy_attn import config as config_lib
from entropy_attn.data import corpora, packing
from entropy_attn.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# What the code behind a field implements: "stop" and "record" are two words of the training loop's own.
IMPLEMENTED = {
  "model.norm": model.NORMS, "model.activation": model.ACTIVATIONS, "model.gelu": model.GELUS,
  "model.ffn": model.FFNS, "model.reparam": reparam.KINDS, "model.reparam_targets": reparam.TARGETS,
  "model.temperature": model.TEMPERATURES, "model.temperature_form": model.TEMPERATURE_FORMS,
  "model.bias": model.BIASED, "model.ffn_out_init": model.OUT_INITS, "model.attention_out_init": model.OUT_INITS,
  "model.value_residual": model.VALUE_RESIDUALS, "model.dtype": model.DTYPES,
  "model.attention": attention.IMPLEMENTATIONS, "regularizer.reduction": entropy.REDUCTIONS,
  "regularizer.sides": entropy.SIDES, "regularizer.strengths": entropy.STRENGTHS,
  "regularizer.ceiling": entropy.CEILINGS,
  "optimizer.name": optimizer.NAMES, "optimizer.schedule": optimizer.SCHEDULES,
  "train.on_nonfinite": ("stop", "record"), "data.name": corpora.NAMES,
  "regularizer.thresholds": entropy.THRESHOLDS, "curriculum.norm": model.NORMS,
  "curriculum.activation": model.ACTIVATIONS, "curriculum.norm_bias": curriculum.NORM_BIASES,
  "model.score_scale": sizes.SCORE_SCALES,
  "data.packing": packing.PACKINGS,
}  # fmt: skip


def test_the_declared_choices_are_those_that_the_code_implements():
  assert {name: tuple(choices) for name, choices in IMPLEMENTED.items()} == config_lib.CHOICES


def test_every_field_has_choices_bounds_or_is_free():
  config = config_lib.base()
  assert {f"{group}.{name}" for group in config for name in config[group]} == set(fields.FIELDS)
  for name, field in fields.FIELDS.items():
    rules = [name in config_lib.CHOICES, name in config_lib.BOUNDS, field.kind is bool, field.rule == fields.FREE]
    assert sum(rules) == 1, f"{name}: give it choices or bounds"
    assert field.comment and "\n" not in field.comment, name
    assert (field.kind in (int, float)) == (name in config_lib.BOUNDS), name
    field.check(name, field.default)
    assert field.parse(name, field.shown(field.default)) == field.default


def _wrong(name, field):
  """Values that a field refuses, as a config file has them, and what is said of each."""
  if field.choices:
    return [("another", f"{name}='another' is not one of {', '.join(field.choices)}"), ("", f"{name}='' is not one of")]
  if field.kind is bool:
    return [("maybe", f"{name}='maybe' must be true or false"), (1, f"{name}=1 must be true or false")]
  if field.kind is str:
    return [(3, f"{name}=3 must be a text")] + ([] if field.empty else [(" ", f"{name}=' ' must not be empty")])
  kind = "an integer" if field.kind is int else "a number"
  wrong = [(value, f"{name}={value!r} must be {kind}") for value in ("many", "4", "", True, [1])]
  if field.kind is int:
    wrong += [(2.5, f"{name}=2.5 must be an integer"), (1e3, f"{name}=1000.0 must be an integer: write 1000")]
  else:
    wrong += [(value, f"{name}={value} must be a finite number") for value in (math.nan, math.inf, -math.inf)]
  b = field.bounds
  if b.least is not None:
    wrong.append((field.kind(b.least - 1), "must be at least "))
  if b.above is not None:
    wrong.append((field.kind(b.above), f"{name}={field.kind(b.above)} must be more than {b.above}"))
  if b.below is not None:
    wrong.append((field.kind(b.below), "must be below "))
  huge = "" if field.kind is int else " must be a finite number"
  wrong.append((10**5000, f"{name}=an integer of 16609 bits{huge}"))
  if b.nonzero:
    wrong.append((field.kind(0), f"{name}=0 must not be 0"))
  return wrong


@pytest.mark.parametrize("name", fields.FIELDS)
def test_a_value_that_a_field_does_not_accept_is_refused_from_a_file_and_from_a_flag(name):
  field = fields.FIELDS[name]
  group, _, short = name.partition(".")
  wrong = _wrong(name, field) + ([] if field.optional else [(None, f"{name}=None must be ")])
  for value, message in wrong:
    plain = config_lib.base().to_dict()
    plain[group][short] = value
    with pytest.raises(UserError, match=re.escape(message)) as found:
      config_lib.validate(ConfigDict(plain))
    assert "\n" not in str(found.value)
    if field.kind is str or (value, field.kind) in (("4", int), ("4", float), (1, bool)):
      continue  # on the command line all of these are texts
    if value is not None and not (isinstance(value, int) and abs(value) > 2**100):
      with pytest.raises(UserError, match=re.escape(name)):
        field.parse(name, str(value))
  for choice in field.choices or ():
    field.check(name, choice)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("model.temperature_form", "logarithm", "model.temperature_form='logarithm' is not one of direct, log"),
    ("optimizer.b2", "1.5", "optimizer.b2=1.5 must be below 1"),
    ("model.init_std", "-1", "model.init_std=-1.0 must be at least 0"),
    ("eval.max_entropy", "-3", "eval.max_entropy=-3.0 must be more than 0, "),
    ("train.seed", "1e20", "train.seed='1e20' must be an integer"),
    ("train.seed", "1" + "0" * 20, "train.seed=100000000000000000000 must be below 2^63"),
    ("train.seed", "9" * 5000, "must be an integer"),
    ("train.steps", "1e3", "train.steps='1e3' must be an integer: write 1000"),
    ("train.steps", "4294967296", "train.steps=2^32 must be below 2^31"),
    ("optimizer.eps", "1e400", "optimizer.eps=inf must be a finite number"),
    ("optimizer.eps", "nan", "optimizer.eps=nan must be a finite number"),
    ("optimizer.b1", "None", "optimizer.b1='None' must be a number"),
  ],
)
def test_what_is_typed_is_refused_by_name_value_and_bound(name, text, message):
  with pytest.raises(UserError, match=re.escape(message.removesuffix(", "))):
    fields.find(name).parse(name, text)


def test_a_float_takes_integers_and_an_optional_field_none():
  assert (
    config_file.load(f"{CONFIGS}/quickstart.py", {"optimizer.b1": 0, "eval.max_entropy": 3}).eval.max_entropy == 3.0
  )
  assert fields.find("eval.max_entropy").parse("eval.max_entropy", "none") is None
  config = config_file.load(f"{CONFIGS}/quickstart.py", {"eval.max_entropy": None, "train.seed": 2**40})
  config_lib.validate(config)
  assert (config.eval.max_entropy, config.train.seed) == (None, 2**40)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("model.normm", "config: model has no field 'normm' (did you mean 'norm'?)"),
    ("train.norm", "config: train has no field 'norm' (did you mean 'model.norm'?)"),
    ("train.zzz", "config: train has no field 'zzz': --help lists them"),
    ("modell.depth", "config: there is no group 'modell' (did you mean 'model'?); the groups are model, regularizer"),
    ("modell.norm", "config: there is no group 'modell' (did you mean 'model.norm'?)"),
    ("steps", "config: there is no group 'steps' (did you mean 'train.steps'?)"),
    ("model", "config: model is a group of fields: set one of them, as in model.num_layers"),
    ("model.", "config: model is a group of fields"),
    ("", "config: there is no group ''"),
    ("model.norm.x", "config: model.norm.x does not exist: model.norm is a field and has no parts"),
  ],
)
def test_an_unknown_field_is_named_with_the_nearest(name, message):
  with pytest.raises(UserError) as found:
    fields.find(name)
  assert str(found.value).startswith(message)


@pytest.mark.parametrize(("text", "steps"), [("", None), ("20,25", (20, 25)), (" 1, 1 ", (1, 1))])
def test_profile_steps(text, steps):
  c = config_lib.base()
  c.train.profile_steps = text
  config_lib.validate(c)
  assert config_lib.profile_steps(c) == steps


@pytest.mark.parametrize("text", ["5", "0,2", "9,3", "1,2,3", "a,b", "-1,2", "1.0,2", " ", "99999999999,99999999999"])
def test_profile_steps_that_are_no_range_are_refused(text):
  c = config_lib.base()
  c.train.profile_steps = text
  with pytest.raises(UserError, match="train.profile_steps=.* must be FIRST,LAST with 1 ≤ FIRST ≤ LAST"):
    config_lib.validate(c)
