"""The configuration: the architectures by name, the two families of settings, and their checks.

A config is an `ml_collections.ConfigDict` of the groups that `fields` declares.
Files under `configs/` start from a family (`codeparrot()` or `languini()`) and set the fields that make their row.
"""

from collections.abc import Mapping
import math
import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from entropy_attn import fields
from entropy_attn.errors import UserError, check_choice

# By "group.field": the values that a field accepts, and what a number must be. All fields are in `fields`.
CHOICES = {name: field.choices for name, field in fields.FIELDS.items() if field.choices}
BOUNDS = {name: field.bounds for name, field in fields.FIELDS.items() if field.bounds}

_SOFTMAX_ONLY = {"norm": "none", "activation": "identity"}
_SCALED = _SOFTMAX_ONLY | {"residual_scaling": True}
_FUSED = _SCALED | {"ffn": "fused"}
_TEMPERED = _FUSED | {"temperature": "per_head_position"}
# The paper's architectures (Tables 1, 2, 5 and 6), by the names of their config files: what each sets of the model.
# `architecture_name` has them in the paper's notation, and `published` what it printed of them.
ARCHITECTURES: dict[str, dict] = {
  "ln_gelu": {},
  "ln_relu": {"activation": "relu"},
  "ln": {"activation": "identity"},
  "gelu": {"norm": "none"},
  "relu": {"norm": "none", "activation": "relu"},
  "sm": _SOFTMAX_ONLY,
  "wnorm": _SOFTMAX_ONLY | {"reparam": "weight"},
  "snorm": _SOFTMAX_ONLY | {"reparam": "spectral"},
  "scffn": _SCALED,
  "scfuffn": _FUSED,
  "scfuffn_t": _TEMPERED,
  "ereg": _TEMPERED,  # and the regulariser
}


def base() -> ConfigDict:
  """Every field, with the default that `fields` declares."""
  value = lambda field: placeholder(field.kind) if field.default is None else field.default
  return ConfigDict(
    {group: {name: value(field) for name, field in names.items()} for group, names in fields.GROUPS.items()}
  )


def codeparrot(setting: str = "T128", architecture: str = "ln_gelu", targets: str = "ffn") -> ConfigDict:
  """The settings behind the CodeParrot tables: T128 (Tables 2, 3), T256 (7), L18 (8); quick: a laptop's size.

  quick is the same recipe for L=6, H=4, d=128 on the Python sources of the machine's own standard library.

  Args:
    setting: one of those.
    architecture: one of ARCHITECTURES.
    targets: model.reparam_targets, for wnorm, snorm and model.reparam=sigma.
  """
  check_choice("the config's argument", setting, ("T128", "T256", "L18", "quick"))
  c = base()
  c.regularizer.reference_batch = 128
  if setting == "T256":  # batch unstated: the same tokens a step
    c.model.context_length = 256
    c.train.batch_size = 256
  elif setting == "L18":
    c.model.num_layers = 18
  elif setting == "quick":
    c.model.update(num_layers=6, num_heads=4, d_model=128, max_positions=128, vocab_size=2048)
    c.model.update(dtype="float32", embedding_dropout=0.0)
    c.train.update(steps=600, batch_size=32, accumulation=1, log_every=10, checkpoint_every=200)
    c.eval.update(every=200, batch_size=32)
    c.data.name = "python_source"
  if architecture == "sm":  # published as NaN: a finding, and no failure
    c.train.on_nonfinite = "record"
  return _of_architecture(c, architecture, targets, temperature_init=1e-2, weight=1e-5)


def languini(budget: str = "1.2B", architecture: str = "ln_gelu", targets: str = "ffn") -> ConfigDict:
  """The settings behind the Languini table (Table 4), T=512: 1.2B, 2.4B or 4.8B tokens.

  Args:
    budget: one of those.
    architecture, targets: as for `codeparrot`.
  """
  budgets = {"1.2B": (18_265, 128), "2.4B": (36_529, 128), "4.8B": (36_529, 256)}
  check_choice("the config's argument", budget, budgets)
  c = base()
  c.model.update(
      context_length=512, max_positions=512, vocab_size=16_384, gelu="tanh", bias="all", tie_embeddings=False,
      scale_embeddings=True, embedding_dropout=0.0, ffn_out_init="depth_scaled",
  )  # fmt: skip
  c.regularizer.reference_batch = 32
  c.optimizer.update(
      schedule="cosine", learning_rate=6e-4, final_learning_rate=6e-6, warmup_steps=200, warmup_fraction=0.0,
      b2=0.95, weight_decay=0.0, clip_norm=0.0,
  )  # fmt: skip
  steps, batch_size = budgets[budget]
  c.train.update(steps=steps, batch_size=batch_size, accumulation=batch_size // 32)
  c.eval.batch_size = 32
  c.data.name = "languini"
  return _of_architecture(c, architecture, targets, temperature_init=1e-1, weight=5e-5)


def _of_architecture(c: ConfigDict, name: str, targets: str, *, temperature_init: float, weight: float) -> ConfigDict:
  """The settings with the fields of an architecture; the last two are the family's own, where it has use for them."""
  check_choice("architecture", name, ARCHITECTURES)
  c.model.update(ARCHITECTURES[name] | {"reparam_targets": targets})
  if c.model.temperature != "none":
    c.model.temperature_init = temperature_init
  if name == "ereg":
    c.regularizer.weight = weight
  return c


def architecture_name(config: ConfigDict) -> str:
  """The architecture in the paper's notation, e.g. 'EReg(SM(t)+ScFuFFN)'."""
  m = config.model
  name = "SM" if m.temperature == "none" else "SM(t)"
  name += "+LN" if m.norm == "layernorm" else ""
  name += {"gelu": "+G", "relu": "+R", "identity": ""}[m.activation]
  if m.reparam != "none":
    name += {"weight": "+WNorm", "spectral": "+SNorm", "sigma": "+σReparam"}[m.reparam]
    name += f"({m.reparam_targets.upper()})"
  name += "+VRes" if m.value_residual == "fixed" else ""
  if m.ffn == "fused" or m.residual_scaling or m.ffns_removed:
    name += "+" + "Sc" * m.residual_scaling + "Fu" * (m.ffn == "fused") + "FFN"
    name += f"(−{m.ffns_removed})" if m.ffns_removed else ""
  return f"EReg({name})" if config.regularizer.weight > 0 else name


def describe(config: ConfigDict) -> str:
  """The architecture, and what acts on it in training alone, with its weights: one line for the user."""
  weight, c = effective_weight(config), config.curriculum
  parts = [architecture_name(config)]
  if weight > 0:
    parts.append(f"effective weight {weight:.3g} on {config.regularizer.reduction}")
  if config.init.source:
    parts.append(f"started from {config.init.source}")
  if config.distill.teacher:
    parts.append(f"distilled from {config.distill.teacher}")
  if c.until:
    start = " and ".join(kind for kind in (c.norm, c.activation) if kind not in ("none", "identity"))
    parts.append(f"{start} faded out by {c.until:.0%} of the steps")
  return ", ".join(parts)


def validate(config: ConfigDict) -> None:
  """Raises UserError for an unknown or missing field, a value it does not accept, or fields that contradict."""
  for group in config:
    if group not in fields.GROUPS:
      fields.find(group)  # raises
    if not isinstance(config[group], Mapping | ConfigDict):
      raise UserError(f"config: {group}={config[group]!r} must be a group of fields")
    for name in config[group]:
      fields.find(f"{group}.{name}")
  for name, field in fields.FIELDS.items():
    field.check(name, _get(config, name))
  _check_model(config.model)
  _check_training(config)
  _check_start(config)
  _check_distillation(config)
  _check_curriculum(config)
  _check_data(config.data)


def profile_steps(config: ConfigDict) -> tuple[int, int] | None:
  """The first and last step of train.profile_steps, or None where it is empty.

  Raises:
    UserError: unless it has the form FIRST,LAST with 1 ≤ FIRST ≤ LAST.
  """
  text = config.train.profile_steps
  if not text:
    return None
  found = re.fullmatch(r"\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*", text)
  first, last = map(int, found.groups()) if found else (0, 0)
  if not 1 <= first <= last:
    raise UserError(f"train.profile_steps={text!r} must be FIRST,LAST with 1 ≤ FIRST ≤ LAST, such as 20,25, or empty")
  return first, last


def _check_model(m) -> None:
  if m.d_model % m.num_heads:
    raise UserError(f"model.d_model={m.d_model} is not divisible by model.num_heads={m.num_heads}")
  if m.context_length > m.max_positions:
    raise UserError(
      f"model.context_length={m.context_length} exceeds model.max_positions={m.max_positions}: raise max_positions"
    )
  if m.ffn == "fused" and m.activation != "identity":
    raise UserError(
      f"model.ffn=fused needs model.activation=identity, not {m.activation}: a nonlinearity cannot be fused"
    )
  if m.ffn == "fused" and m.ffn_width:
    raise UserError(f"model.ffn_width={m.ffn_width} has no effect with model.ffn=fused: leave it out")
  if m.ffns_removed > m.num_layers:
    raise UserError(f"model.ffns_removed={m.ffns_removed} is more than model.num_layers={m.num_layers}")
  if m.temperature != "none" and m.temperature_init <= 0:
    raise UserError(f"model.temperature_init={m.temperature_init} must be positive")


def _check_training(c: ConfigDict) -> None:
  if c.train.batch_size % c.train.accumulation:
    raise UserError(
      f"train.batch_size={c.train.batch_size} is not divisible by train.accumulation={c.train.accumulation}"
    )
  if c.optimizer.warmup_steps and c.optimizer.warmup_fraction:
    raise UserError("optimizer.warmup_steps and optimizer.warmup_fraction are both set: set one of them to 0")
  if c.regularizer.strengths != "shared" and c.regularizer.weight == 0:
    raise UserError(f"regularizer.strengths={c.regularizer.strengths} needs regularizer.weight above 0")
  if c.eval.last_n > c.model.context_length:
    raise UserError(f"eval.last_n={c.eval.last_n} exceeds model.context_length={c.model.context_length}")
  if c.eval.last_n and c.data.name != "languini":
    raise UserError(
      f"eval.last_n={c.eval.last_n} needs data.name=languini, not {c.data.name}: other records do not overlap"
    )
  profile_steps(c)


def _check_start(config: ConfigDict) -> None:
  if config.init.source.strip() and config.model.reparam == "spectral":
    raise UserError(
      f"init.source={config.init.source} with model.reparam=spectral: a kernel over its norm, without a gain, is not "
      "the source's; use model.reparam=sigma or weight, which have one"
    )


def _check_distillation(config: ConfigDict) -> None:
  d = config.distill
  if not d.teacher.strip():
    _refuse_unread(config, "distill", "distill.teacher=''")
  if d.weight > 1:
    raise UserError(f"distill.weight={d.weight} must be at most 1: the cross-entropy keeps 1 − weight")
  if d.entropy_weight and config.regularizer.weight:
    raise UserError(
      f"distill.entropy_weight={d.entropy_weight} and regularizer.weight={config.regularizer.weight} are both set: the "
      "teacher's entropies stand in place of thresholds; set one of them to 0"
    )


def _check_curriculum(config: ConfigDict) -> None:
  c, m = config.curriculum, config.model
  if not c.until:
    _refuse_unread(config, "curriculum", "curriculum.until=0")
    return
  if m.norm != "none" or m.activation != "identity":
    raise UserError(
      f"curriculum.until={c.until} needs model.norm=none and model.activation=identity, not {m.norm} and "
      f"{m.activation}: the model is what the curriculum ends in"
    )
  if c.norm == "none" and c.activation == "identity":
    raise UserError(f"curriculum.until={c.until} fades nothing with curriculum.norm=none and activation=identity")
  if c.norm_bias == "kept" and (c.norm == "none" or m.bias != "all"):
    raise UserError(
      f"curriculum.norm_bias=kept needs curriculum.norm=layernorm and model.bias=all, not {c.norm} and {m.bias}: the "
      "linears after the norm take its bias over"
    )
  if m.ffn == "fused" and c.activation != "identity":
    raise UserError(
      f"curriculum.activation={c.activation} needs model.ffn=mlp: a fused FFN has no activation to begin with; its "
      "private cost is the same"
    )


def _refuse_unread(config: ConfigDict, group: str, why: str) -> None:
  """Raises UserError for a field of a group that is off and was set: it would promise what is not done."""
  for name, field in fields.GROUPS[group].items():
    if config[group][name] != field.default:
      raise UserError(f"{group}.{name}={config[group][name]} has no effect with {why}: leave it out")


def _check_data(data) -> None:
  """Raises UserError for a field that was set and that the corpus does not read: it would promise what is not done."""
  changed = [name for name, field in fields.GROUPS["data"].items() if data[name] != field.default]
  for name in fields.unread(data.name, changed):
    raise UserError(f"data.{name}={data[name]} has no effect with data.name={data.name}: leave it out")


def completed(saved: ConfigDict) -> ConfigDict:
  """The config of an earlier version with the fields that it did not have, whose defaults are what it then did.

  Raises:
    TypeError: where what should be a group is none.
  """
  whole = base().to_dict()
  for group, values in saved.to_dict().items():
    whole[group] = whole[group] | values if group in whole else values
  return ConfigDict(whole)


def effective_weight(config: ConfigDict) -> float:
  """What multiplies the penalty in the loss.

  The released code sums its per-query penalty over a microbatch: lambda × reference_batch on our mean is the same
  value at that microbatch, and stays it at any other. Algorithm 1 (head_mean) sums over nothing: lambda itself.
  """
  r = config.regularizer
  return r.weight * (r.reference_batch if r.reduction == "per_query_sum" else 1)


def bins_max(config: ConfigDict) -> float:
  """The Max of the head bins, nats: eval.max_entropy, else the causal ceiling, one number for all models of one T."""
  chosen = config.eval.max_entropy
  return causal_ceiling(config.model.context_length) if chosen is None else chosen


def causal_ceiling(length: int) -> float:
  """mean_i log(i+1) in nats over rows i < length: the largest mean entropy of a causal head."""
  return math.lgamma(length + 1) / length


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
  """'group.field: old → new' for each field in which two configs differ."""
  lines = []
  for group in sorted(set(a) | set(b)):
    old, new = a.get(group, {}), b.get(group, {})
    for name in sorted(set(old) | set(new)):
      if old.get(name) != new.get(name):
        lines.append(f"{group}.{name}: {old.get(name)} → {new.get(name)}")
  return lines


def _get(config: ConfigDict, dotted: str):
  group, name = dotted.split(".")
  if group not in config:
    raise UserError(f"config: the group {group!r} is missing: start from config.base()")
  if name not in config[group]:
    raise UserError(f"{dotted} is missing; its default is {fields.FIELDS[dotted].default!r}")
  return config[group][name]
