"""The configuration: every field with its default, the two families of settings, and their checks.

A config is an `ml_collections.ConfigDict` of seven groups: model, regularizer, optimizer, train, eval, data, mesh.
Files under `configs/` start from a family (`codeparrot()` or `languini()`) and set the fields that make their row.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from entropy_attn import attention, entropy, model, optimizer, reparam
from entropy_attn.data import corpora, packing
from entropy_attn.errors import UserError, check_choice

# The values that a field accepts, by "group.field": those that the code behind it implements.
CHOICES = {
  "model.norm": model.NORMS,
  "model.activation": model.ACTIVATIONS,
  "model.gelu": model.GELUS,
  "model.ffn": model.FFNS,
  "model.reparam": reparam.KINDS,
  "model.reparam_targets": reparam.TARGETS,
  "model.temperature": model.TEMPERATURES,
  "model.temperature_form": model.TEMPERATURE_FORMS,
  "model.bias": model.BIASED,
  "model.ffn_out_init": model.FFN_OUT_INITS,
  "model.dtype": model.DTYPES,
  "model.attention": attention.IMPLEMENTATIONS,
  "regularizer.reduction": entropy.REDUCTIONS,
  "regularizer.sides": entropy.SIDES,
  "regularizer.ceiling": entropy.CEILINGS,
  "optimizer.schedule": optimizer.SCHEDULES,
  "train.on_nonfinite": ("stop", "record"),
  "data.name": corpora.NAMES,
  "data.packing": packing.PACKINGS,
}

# What a number must at least be, and what it must stay below, by "group.field".
BOUNDS = {
    "model.num_layers": (1, None), "model.num_heads": (1, None), "model.d_model": (1, None),
    "model.context_length": (2, None), "model.max_positions": (2, None), "model.vocab_size": (2, None),
    "model.alpha_init": (None, None), "model.beta_init": (None, None), "model.temperature_init": (None, None),
    "model.embedding_dropout": (0, 1), "model.init_std": (0, None), "regularizer.weight": (0, None),
    "regularizer.gamma": (0, None), "regularizer.reference_batch": (1, None),
    "regularizer.threshold_init": (None, None), "optimizer.learning_rate": (0, None),
    "optimizer.final_learning_rate": (0, None), "optimizer.warmup_steps": (0, None),
    "optimizer.warmup_fraction": (0, None), "optimizer.b1": (0, 1), "optimizer.b2": (0, 1), "optimizer.eps": (0, None),
    "optimizer.weight_decay": (0, None), "optimizer.clip_norm": (0, None), "train.steps": (1, None),
    "train.batch_size": (1, None), "train.accumulation": (1, None), "train.seed": (-(2**63), 2**63),
    "train.log_every": (1, None), "train.checkpoint_every": (1, None), "train.keep_checkpoints": (1, None),
    "eval.every": (0, None), "eval.batch_size": (1, None), "eval.batches": (0, None), "eval.last_n": (0, None),
    "eval.max_entropy": (0, None), "data.max_train_files": (1, None), "data.max_valid_files": (1, None),
    "data.valid_fraction": (0, 1), "mesh.data": (-1, None), "mesh.fsdp": (1, None), "mesh.tensor": (1, None),
}  # fmt: skip

_SOFTMAX_ONLY = {"norm": "none", "activation": "identity"}
_SCALED = _SOFTMAX_ONLY | {"residual_scaling": True}
_FUSED = _SCALED | {"ffn": "fused"}
_TEMPERED = _FUSED | {"temperature": "per_head_position"}
# The paper's architectures (Tables 1, 2, 5 and 6), by the names of their config files: what each sets of the model.
# `architecture_name` has them in the paper's notation, and `published` what it printed of them.
ARCHITECTURES = {
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
  """Every field, with the default of what no source states; the rest are GPT-2 small on CodeParrot, T=128."""
  return ConfigDict(
    {
      "model": {
        "num_layers": 12,
        "num_heads": 12,
        "d_model": 768,  # the FFN's hidden width is 4 × d_model
        "context_length": 128,  # T, the tokens of one training sequence
        "max_positions": 1024,  # rows of the position table; the first T are used
        "vocab_size": 50_000,
        "norm": "layernorm",  # before attention and FFN; the final LayerNorm is kept in every variant
        "activation": "gelu",
        "gelu": "erf",
        "ffn": "mlp",  # fused: one d→d linear, needs activation=identity
        "residual_scaling": False,  # eq. 8: x = beta x_sa + FFN(x_sa) / alpha
        "alpha_init": 1.0,
        "beta_init": 1.0,
        "reparam": "none",
        "reparam_targets": "ffn",
        "temperature": "none",
        "temperature_init": 1.0,
        "temperature_form": "direct",  # learn t itself, which may cross zero, or (log) its logarithm, t > 0
        "bias": "qk",
        "tie_embeddings": True,
        "scale_embeddings": False,  # token embeddings × sqrt(d_model)
        "embedding_dropout": 0.1,
        "init_std": 0.02,
        "ffn_out_init": "plain",  # depth_scaled: init_std / sqrt(2 L) for the FFN's last linear
        "dtype": "bfloat16",  # of the matrix products; parameters, softmax and loss are float32
        "remat": False,  # recompute each block in the backward pass
        "attention": "auto",  # the implementation
      },
      "regularizer": {
        "weight": 0.0,  # lambda; 0: no regulariser and no thresholds
        "gamma": 0.2,  # tolerance margin, in parts of E_max
        "reduction": "per_query_sum",
        "sides": "both",
        "ceiling": "log_T",
        "reference_batch": 128,  # the microbatch over which the released code sums
        "threshold_init": 0.5,
      },
      "optimizer": {
        "schedule": "linear",
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-7,
        "warmup_steps": 0,  # either this …
        "warmup_fraction": 0.05,  # … or this part of train.steps
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.1,  # of matrices and embeddings alone
        "clip_norm": 1.0,  # 0: off
      },
      "train": {
        "steps": 32_300,
        "batch_size": 512,  # sequences a step, over all devices and accumulated microbatches
        "accumulation": 4,
        "seed": 0,
        "log_every": 50,
        "checkpoint_every": 1000,
        "keep_checkpoints": 2,
        "on_nonfinite": "stop",  # record: mark the run diverged and exit zero
      },
      "eval": {
        "every": 500,  # 0: only at the end
        "batch_size": 128,
        "batches": 0,  # 0: the whole split
        "last_n": 0,  # Languini's protocol: windows stride by last_n, their last last_n tokens count; 0: off
        "max_entropy": placeholder(float),  # the bins' Max in nats; unset: the causal ceiling, mean_i log(i+1)
      },
      "data": {
        "name": "codeparrot",
        "path": "",  # a folder (codeparrot: of parquet or jsonl, "": the Hub; text_files: or a glob)
        "tokenizer": "",  # codeparrot, text_files: a tokenizer.json, SentencePiece .model or Hub name
        "data_dir": "~/.cache/entropy_attn",  # where built datasets live
        "packing": "per_file",  # concat: documents joined by the end-of-text token
        "include_site_packages": False,  # python_source: the environment's packages too
        "max_train_files": 600_000,
        "max_valid_files": 2_000,
        "valid_fraction": 0.05,  # python_source, text_files: the files held out, by hash
        "eval_split": "test_iid",  # languini: test_iid, test_langlearn, test_discworld, test_java, …
      },
      "mesh": {
        "data": -1,  # -1: all devices that fsdp and tensor leave
        "fsdp": 1,
        "tensor": 1,
      },
    }
  )


def codeparrot(setting: str = "T128", architecture: str = "ln_gelu", targets: str = "ffn") -> ConfigDict:
  """The settings behind the CodeParrot tables: T128 (Tables 2, 3), T256 (7), L18 (8); quick: a laptop's size.

  quick is the same recipe for L=6, H=4, d=128 on the Python sources of the machine's own standard library.

  Args:
    setting: one of those.
    architecture: one of ARCHITECTURES.
    targets: model.reparam_targets, for wnorm and snorm.
  """
  check_choice("the config's argument", setting, ("T128", "T256", "L18", "quick"))
  c = base()
  c.regularizer.reference_batch = 128
  c.data.tokenizer = "huggingface-course/code-search-net-tokenizer"
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
    c.data.update(name="python_source", tokenizer="")
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
  c.data.update(name="languini", path="data/languini")
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
    name += {"weight": "+WNorm", "spectral": "+SNorm"}[m.reparam] + f"({m.reparam_targets.upper()})"
  if m.ffn == "fused" or m.residual_scaling:
    name += "+" + "Sc" * m.residual_scaling + "Fu" * (m.ffn == "fused") + "FFN"
  return f"EReg({name})" if config.regularizer.weight > 0 else name


def describe(config: ConfigDict) -> str:
  """The architecture, and the weight of its regulariser where it has one: one line for the user."""
  weight = effective_weight(config)
  regulariser = f", effective weight {weight:.3g} on {config.regularizer.reduction}" if weight > 0 else ""
  return architecture_name(config) + regulariser


def validate(config: ConfigDict) -> None:
  """Raises UserError for an unknown or missing field, an unknown value, or fields that contradict each other."""
  reference = base()
  for group, fields in reference.items():
    if group not in config:
      raise UserError(f"config: the group {group!r} is missing")
    check_fields(group, config[group], fields)
  for group in config:
    check_choice("config group", group, reference)
  for name, choices in CHOICES.items():
    check_choice(name, _get(config, name), choices)
  for name, (least, end) in BOUNDS.items():
    _check_bounds(name, _get(config, name), least, end)
  _check_model(config.model)
  _check_training(config)


def check_fields(group: str, fields, reference) -> None:
  """Raises UserError unless `fields` has exactly the names of `reference`, each of its type."""
  for name in fields:
    check_choice(f"field of {group}", name, reference)
  for name, default in reference.items():
    if name not in fields:
      raise UserError(f"{group}.{name} is missing; its default is {default!r}")
    value, kind = fields[name], type(default)
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if default is not None and (not right or (isinstance(value, bool) and kind is not bool)):
      raise UserError(f"{group}.{name}={value!r} must be of type {kind.__name__}")


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
  if m.temperature != "none" and m.temperature_init <= 0:
    raise UserError(f"model.temperature_init={m.temperature_init} must be positive")
  if m.alpha_init == 0:
    raise UserError("model.alpha_init=0 must not be 0: the FFN's output is divided by it")


def _check_training(c: ConfigDict) -> None:
  if c.train.batch_size % c.train.accumulation:
    raise UserError(
      f"train.batch_size={c.train.batch_size} is not divisible by train.accumulation={c.train.accumulation}"
    )
  if c.optimizer.warmup_steps and c.optimizer.warmup_fraction:
    raise UserError("optimizer.warmup_steps and optimizer.warmup_fraction are both set: set one of them to 0")
  if c.eval.last_n > c.model.context_length:
    raise UserError(f"eval.last_n={c.eval.last_n} exceeds model.context_length={c.model.context_length}")
  if c.eval.last_n and c.data.name != "languini":
    raise UserError(
      f"eval.last_n={c.eval.last_n} needs data.name=languini, not {c.data.name}: other records do not overlap"
    )
  for name in ("data.valid_fraction", "eval.max_entropy"):
    if _get(c, name) == 0:
      raise UserError(f"{name}=0 must be more than 0")
  if c.mesh.data == 0:
    raise UserError("mesh.data=0 must be positive, or -1 for all remaining devices")


def _check_bounds(name: str, value, least, end) -> None:
  """Raises UserError for a number that is not finite, below `least`, or not below `end`; None is no bound."""
  if value is None:  # a field that may be unset
    return
  if not math.isfinite(value):
    raise UserError(f"{name}={value} must be a finite number")
  if least is not None and value < least:
    raise UserError(f"{name}={value} must be at least {least}")
  if end is not None and value >= end:
    raise UserError(f"{name}={value} must be below {end}")


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
  return config[group][name]
