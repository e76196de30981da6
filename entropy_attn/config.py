"""The configuration: every field with its default, the two families of settings, and their checks.

A config is an `ml_collections.ConfigDict` of seven groups: model, regularizer, optimizer, train, eval, data, mesh.
Files under `configs/` start from a family (`codeparrot()` or `languini()`) and set the fields that make their row.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from entropy_attn.errors import UserError, check_choice

# The values that a field accepts, by "group.field".
CHOICES = {
  "model.norm": ("layernorm", "none"),
  "model.activation": ("gelu", "relu", "identity"),
  "model.gelu": ("erf", "tanh"),
  "model.ffn": ("mlp", "fused"),
  "model.reparam": ("none", "weight", "spectral"),
  "model.reparam_targets": ("qk", "ffn", "qk+ffn", "qkv+ffn", "qkvo+ffn"),
  "model.temperature": ("none", "per_head", "per_head_position"),
  "model.bias": ("none", "qk", "all"),
  "model.ffn_out_init": ("plain", "depth_scaled"),
  "model.dtype": ("bfloat16", "float32"),
  "model.attention": ("auto", "reference", "blockwise", "gpu", "tpu"),
  "regularizer.reduction": ("per_query_sum", "head_mean"),
  "regularizer.sides": ("both", "upper"),
  "regularizer.ceiling": ("log_T", "causal"),
  "optimizer.schedule": ("linear", "cosine"),
  "train.on_nonfinite": ("stop", "record"),
  "data.name": ("python_source", "codeparrot", "languini", "text_files"),
  "data.packing": ("per_file", "concat"),
}

# Values that must be at least this much, by "group.field".
_AT_LEAST = {
    "model.num_layers": 1, "model.num_heads": 1, "model.d_model": 1, "model.context_length": 2,
    "model.max_positions": 2, "model.vocab_size": 2, "regularizer.weight": 0, "regularizer.gamma": 0,
    "regularizer.reference_batch": 1, "optimizer.learning_rate": 0, "optimizer.final_learning_rate": 0,
    "optimizer.warmup_steps": 0, "optimizer.warmup_fraction": 0, "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0, "train.steps": 1, "train.batch_size": 1, "train.accumulation": 1,
    "train.log_every": 1, "train.checkpoint_every": 1, "train.keep_checkpoints": 1, "eval.every": 0,
    "eval.batch_size": 1, "eval.batches": 0, "eval.last_n": 0, "data.max_train_files": 1,
    "data.max_valid_files": 1, "mesh.fsdp": 1, "mesh.tensor": 1,
}  # fmt: skip


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


def codeparrot(setting: str = "T128") -> ConfigDict:
  """The settings behind the CodeParrot tables: T128 (Tables 2, 3), T256 (7), L18 (8); quick: a laptop's size.

  quick is the same recipe for L=6, H=4, d=128 on the Python sources of the machine's own standard library.
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
  return c


def languini(budget: str = "1.2B") -> ConfigDict:
  """The settings behind the Languini table (Table 4), T=512: 1.2B, 2.4B or 4.8B tokens."""
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
  for name, least in _AT_LEAST.items():
    if not _get(config, name) >= least:
      raise UserError(f"{name}={_get(config, name)} must be at least {least}")
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
  if not 0 <= m.embedding_dropout < 1:
    raise UserError(f"model.embedding_dropout={m.embedding_dropout} must be in [0, 1)")


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
  if not 0 < c.data.valid_fraction < 1:
    raise UserError(f"data.valid_fraction={c.data.valid_fraction} must be in (0, 1)")
  if c.mesh.data != -1 and c.mesh.data < 1:
    raise UserError(f"mesh.data={c.mesh.data} must be positive, or -1 for all remaining devices")


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
