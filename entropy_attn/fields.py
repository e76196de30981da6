"""Every field of a config, declared once: its default, what it accepts, and what --help says of it.

`config` builds configs from these declarations and checks them. What the choices stand for is in the code behind them
(`model.NORMS` and its kind); a test holds the two together, since to import that code takes seconds.
"""

from collections.abc import Iterable
import dataclasses
import math

from entropy_attn.data import corpora
from entropy_attn.errors import UserError, check_choice, nearest

FREE = "free"  # any text: it is checked where it is used
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
_INT32 = 2**31


@dataclasses.dataclass(frozen=True)
class Bounds:
  """What a number must be; None is no bound."""

  least: float | None = None
  above: float | None = None
  below: float | None = None
  nonzero: bool = False

  def __str__(self) -> str:
    parts = [] if self.least is None else [f"≥ {_shown(self.least)}"]
    parts += [] if self.above is None else [f"> {_shown(self.above)}"]
    parts += [] if self.below in (None, _INT32) else [f"< {_shown(self.below)}"]  # all integers are below 2^31
    parts += ["not 0"] if self.nonzero else []
    return ", ".join(parts) or "finite"

  def check(self, name: str, value: float) -> None:
    """Raises UserError, naming field, value and bound, for a number that is not within them."""
    if self.least is not None and value < self.least:
      raise UserError(f"{name}={_shown(value)} must be at least {_shown(self.least)}")
    if self.above is not None and value <= self.above:
      raise UserError(f"{name}={_shown(value)} must be more than {_shown(self.above)}")
    if self.below is not None and value >= self.below:
      raise UserError(f"{name}={_shown(value)} must be below {_shown(self.below)}")
    if self.nonzero and value == 0:
      raise UserError(f"{name}=0 must not be 0")


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a config.

  Attributes:
    default: None: unset, which an `optional` field may be.
    kind: int, float (which takes integers too), bool or str.
    comment: what --help says of it.
    choices: the texts that it accepts; None: any.
    bounds: of a number.
    empty: whether a text may be empty.
  """

  default: object
  kind: type
  comment: str
  choices: tuple[str, ...] | None = None
  bounds: Bounds | None = None
  optional: bool = False
  empty: bool = True

  @property
  def rule(self) -> str:
    """What it accepts: '{a, b}', '≥ 0, < 1', or 'free'."""
    choices = ("true", "false") if self.kind is bool else self.choices
    rule = f"{{{', '.join(choices)}}}" if choices else str(self.bounds or FREE)
    return f"{rule}, or none" if self.optional else rule

  def check(self, name: str, value) -> None:
    """Raises UserError, naming field, value and what would do, for a value that the field does not accept."""
    if value is None and self.optional:
      return
    right = isinstance(value, (int, float)) if self.kind is float else isinstance(value, self.kind)
    if not right or (isinstance(value, bool) and self.kind is not bool):
      raise self._wrong_kind(name, value)
    if self.kind is float and not _is_finite(value):
      raise UserError(f"{name}={_shown(value)} must be a finite number")
    if self.choices:
      check_choice(name, value, self.choices)
    if self.bounds:
      self.bounds.check(name, value)
    if not self.empty and not value.strip():
      raise UserError(f"{name}={value!r} must not be empty; its default is {self.default!r}")

  def parse(self, name: str, text: str):
    """The value that a text on the command line stands for, checked.

    Raises:
      UserError: for a text that the field does not accept.
    """
    value = self._value_of(name, text)
    self.check(name, value)
    return value

  def shown(self, value) -> str:
    """A value as `parse` reads it."""
    if value is None:
      return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)

  def _value_of(self, name: str, text: str):
    if self.optional and text.lower() == "none":
      return None
    if self.kind is bool:
      words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
      if text.lower() not in words:
        raise self._wrong_kind(name, text)
      return words[text.lower()]
    try:
      return self.kind(text)
    except ValueError:
      raise self._wrong_kind(name, text) from None

  def _wrong_kind(self, name: str, value) -> UserError:
    kinds = f"{_KINDS[self.kind]}{', or none' if self.optional else ''}"
    choices = f": one of {', '.join(self.choices)}" if self.choices else ""
    return UserError(f"{name}={_shown(value)} must be {kinds}{choices}{self._instead(value)}")

  def _instead(self, value) -> str:
    """The integer that a text or number such as 1e3 may have meant."""
    try:
      meant = float(value) if self.kind is int and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
      return ""
    return f": write {int(meant)}" if abs(meant) < 2**63 and meant == int(meant) else ""


def _is_finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer beyond the floats
    return False


def _shown(value) -> str:
  """A value in a message: one line, and no longer than one reads."""
  if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _INT32:
    power = abs(value).bit_length() - 1
    if abs(value) == 2**power:
      return f"{'-' if value < 0 else ''}2^{power}"
    return str(value) if power < 100 else f"an integer of {power} bits"
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:77]}…"


def _choice(default: str, choices: tuple[str, ...], comment: str) -> Field:
  return Field(default, str, comment, choices=choices)


def _int(default: int, comment: str, *, least: int, below: int = _INT32, nonzero: bool = False) -> Field:
  return Field(default, int, comment, bounds=Bounds(least=least, below=below, nonzero=nonzero))


def _float(default: float | None, comment: str, **bounds) -> Field:
  return Field(default, float, comment, bounds=Bounds(**bounds), optional=default is None)


def _bool(default: bool, comment: str) -> Field:
  return Field(default, bool, comment)


def _text(default: str, comment: str, *, empty: bool = True) -> Field:
  return Field(default, str, comment, empty=empty)


# The defaults are those of what no source states; the rest are GPT-2 small on CodeParrot, T=128.
GROUPS: dict[str, dict[str, Field]] = {
  "model": {
    "num_layers": _int(12, "L", least=1),
    "num_heads": _int(12, "H; they divide d_model", least=1),
    "d_model": _int(768, "d", least=1),
    "context_length": _int(128, "T, the tokens of one training sequence", least=2),
    "max_positions": _int(1024, "rows of the position table; the first T are used", least=2),
    "vocab_size": _int(50_000, "tokens that the model knows", least=2),
    "norm": _choice(
      "layernorm", ("layernorm", "none"), "before attention and FFN; the final LayerNorm is kept in every variant"
    ),
    "activation": _choice("gelu", ("gelu", "relu", "identity"), "of the FFN"),
    "layer_norm_epsilon": _float(1e-5, "added to the variance in every LayerNorm", least=0),
    "gelu": _choice("erf", ("erf", "tanh"), "exact, or by tanh"),
    "ffn": _choice("mlp", ("mlp", "fused"), "fused: one d→d linear, needs activation=identity"),
    "ffn_width": _int(0, "hidden units of the FFN; 0: 4 × d_model", least=0),
    "score_scale": _choice(
      "root_width",
      ("root_width", "root_width_and_layer", "layer", "none"),
      "attention scores are divided by sqrt(d / H), by the layer's number from 1, by both or by nothing",
    ),
    "residual_scaling": _bool(False, "eq. 8: x = beta x_sa + FFN(x_sa) / alpha"),
    "alpha_init": _float(1.0, "alpha of eq. 8 at the start", nonzero=True),
    "beta_init": _float(1.0, "beta of eq. 8 at the start"),
    "reparam": _choice(
      "none", ("none", "weight", "spectral", "sigma"), "of the linears in reparam_targets; sigma: g V / sigma(V)"
    ),
    "reparam_targets": _choice("ffn", ("qk", "ffn", "qk+ffn", "qkv+ffn", "qkvo+ffn"), "the linears that it normalises"),
    "temperature": _choice("none", ("none", "per_head", "per_head_position"), "a learnable one of the softmax"),
    "temperature_init": _float(1.0, "its value at the start; positive where it is learned"),
    "temperature_form": _choice(
      "direct", ("direct", "log"), "learn t itself, which may cross zero, or (log) its logarithm, t > 0"
    ),
    "bias": _choice("qk", ("none", "qk", "all"), "the linears that have one"),
    "tie_embeddings": _bool(True, "the vocabulary projection is the token embedding"),
    "scale_embeddings": _bool(False, "token embeddings × sqrt(d_model)"),
    "embedding_dropout": _float(0.1, "of token and position embeddings, in training", least=0, below=1),
    "init_std": _float(0.02, "of the initial weights", least=0),
    "ffn_out_init": _choice(
      "plain", ("plain", "depth_scaled"), "depth_scaled: init_std / sqrt(2 L) for the FFN's last linear"
    ),
    "attention_out_init": _choice("plain", ("plain", "depth_scaled"), "the same for the attention's last linear"),
    "value_residual": _choice("none", ("none", "fixed"), "fixed: from layer 2 on v = (v + v of layer 1) / 2"),
    "ffns_removed": _int(0, "the deepest so many blocks are attention alone", least=0),
    "dtype": _choice(
      "bfloat16", ("bfloat16", "float32"), "of the matrix products; parameters, softmax and loss are float32"
    ),
    "remat": _bool(False, "recompute each block in the backward pass: less memory, more time"),
    "attention": _choice("auto", ("auto", "reference", "blockwise", "gpu", "tpu"), "the implementation"),
  },
  "regularizer": {
    "weight": _float(0.0, "lambda; 0: no regulariser and no thresholds", least=0),
    "gamma": _float(0.2, "tolerance margin, in parts of E_max", least=0),
    "reduction": _choice(
      "per_query_sum", ("per_query_sum", "head_mean"), "of each query, summed; or of each head's mean (Algorithm 1)"
    ),
    "sides": _choice("both", ("both", "upper"), "upper: penalise only what lies above the threshold"),
    "strengths": _choice(
      "shared", ("shared", "per_head"), "per_head: learned weights of heads, mean 1, largest where most is penalised"
    ),
    "ceiling": _choice("log_T", ("log_T", "causal"), "E_max: log T, or what a causal row can reach"),
    "reference_batch": _int(128, "the microbatch over which the released code sums", least=1),
    "threshold_init": _float(0.5, "theta of each head at the start, in parts of E_max"),
    "thresholds": _choice(
      "learned", ("learned", "shared", "fixed"), "one a head; one for all heads; or threshold_init, which stays"
    ),
  },
  "init": {
    "source": _text("", "start from a trained model: a run, a Hugging Face folder or Hub name; empty: from train.seed"),
  },
  "distill": {
    "teacher": _text("", "a finished run, or as init.source, with this vocabulary and tokenizer; empty: none"),
    "weight": _float(0.5, "of the KL of the logits, × temperature²; the cross-entropy keeps the rest of 1", least=0),
    "temperature": _float(2.0, "that divides the logits of both in the KL", above=0),
    "entropy_weight": _float(
      0.0, "of the squared difference from the teacher's entropies, a mean over heads and queries", least=0
    ),
  },
  "curriculum": {
    "until": _float(
      0.0, "this part of train.steps fades norm and activation to the model's own, none; 0: off", least=0, below=1
    ),
    "norm": _choice("layernorm", ("layernorm", "none"), "at the start; it fades to a constant scale, which folds"),
    "activation": _choice("gelu", ("gelu", "relu", "identity"), "at the start; it fades to the identity"),
    "norm_bias": _choice("fades", ("fades", "kept"), "kept: it folds into the linears that follow, of model.bias=all"),
  },
  "optimizer": {
    "name": _choice("adamw", ("adamw", "muon"), "muon: of the blocks' matrices, with AdamW for all else"),
    "muon_rate": _float(1.0, "Muon's learning rate, in parts of learning_rate", above=0),
    "muon_momentum": _float(0.95, "Muon's, of Nesterov's form", least=0, below=1),
    "schedule": _choice("linear", ("linear", "cosine"), "of the learning rate, after the warmup"),
    "learning_rate": _float(1e-3, "at its peak", least=0),
    "final_learning_rate": _float(1e-7, "at the last step", least=0),
    "warmup_steps": _int(0, "either this …", least=0),
    "warmup_fraction": _float(0.05, "… or this part of train.steps", least=0),
    "b1": _float(0.9, "AdamW's beta 1", least=0, below=1),
    "b2": _float(0.999, "AdamW's beta 2", least=0, below=1),
    "eps": _float(1e-8, "AdamW's epsilon", least=0),
    "weight_decay": _float(0.1, "of matrices and embeddings alone", least=0),
    "clip_norm": _float(1.0, "of the whole gradient; 0: off", least=0),
  },
  "train": {
    "steps": _int(32_300, "updates of the parameters", least=1),
    "batch_size": _int(512, "sequences a step, over all devices and accumulated microbatches", least=1),
    "accumulation": _int(4, "microbatches a step; they divide batch_size", least=1),
    "seed": _int(0, "of initial weights, dropout and the order of the text", least=-(2**63), below=2**63),
    "log_every": _int(50, "steps between two records", least=1),
    "checkpoint_every": _int(1000, "steps between two checkpoints", least=1),
    "keep_checkpoints": _int(2, "the newest that are kept", least=1),
    "on_nonfinite": _choice("stop", ("stop", "record"), "record: mark the run diverged and exit zero"),
    "profile_steps": _text("", "FIRST,LAST such as 20,25: trace these steps for TensorBoard's profiler; empty: none"),
  },
  "eval": {
    "every": _int(500, "steps between two evaluations; 0: only at the end", least=0),
    "batch_size": _int(128, "sequences a batch", least=1),
    "batches": _int(0, "0: the whole split", least=0),
    "last_n": _int(0, "Languini's protocol: windows stride by last_n, their last last_n tokens count; 0: off", least=0),
    "max_entropy": _float(None, "the bins' Max in nats; none: the causal ceiling, mean_i log(i+1)", above=0),
  },
  "data": {
    "name": _choice("codeparrot", corpora.NAMES, "the corpus"),
    "path": _text("", "a folder (codeparrot: of parquet or jsonl, empty: the Hub; text_files: or a glob)"),
    "tokenizer": _text("", "a tokenizer.json, SentencePiece .model or Hub name; empty: the corpus's own"),
    "data_dir": _text("~/.cache/entropy_attn", "where built datasets live", empty=False),
    "packing": _choice("per_file", ("per_file", "concat"), "concat: documents joined by the end-of-text token"),
    "include_site_packages": _bool(False, "python_source: the environment's packages too"),
    "max_train_files": _int(600_000, "documents to train on", least=1),
    "max_valid_files": _int(2_000, "documents to evaluate on", least=1),
    "valid_fraction": _float(corpora.VALID_FRACTION, "the documents held out, by hash", above=0, below=1),
    "eval_split": _text("test_iid", "languini: test_iid, test_langlearn, test_discworld, test_java, …", empty=False),
  },
  "mesh": {
    "data": _int(-1, "devices along this axis; -1: all that fsdp and tensor leave", least=-1, nonzero=True),
    "fsdp": _int(1, "devices that share the parameters", least=1),
    "tensor": _int(1, "devices that share each layer's heads and width", least=1),
  },
}
FIELDS = {f"{group}.{name}": field for group, fields in GROUPS.items() for name, field in fields.items()}


def find(name: str) -> Field:
  """The field that "group.field" names.

  Raises:
    UserError: where there is none; it names the nearest.
  """
  if name in FIELDS:
    return FIELDS[name]
  group, dot, field = name.partition(".")
  if group not in GROUPS:
    elsewhere = _groups_with(field if dot else group)
    where = f" (did you mean {elsewhere[0]!r}?)" if elsewhere else nearest(group, GROUPS)
    raise UserError(f"config: there is no group {group!r}{where}; the groups are {', '.join(GROUPS)}")
  if not dot or not field:
    first = next(iter(GROUPS[group]))
    raise UserError(f"config: {group} is a group of fields: set one of them, as in {group}.{first}")
  if field.partition(".")[0] in GROUPS[group]:
    raise UserError(f"config: {name} does not exist: {group}.{field.partition('.')[0]} is a field and has no parts")
  elsewhere = _groups_with(field)
  where = f" (did you mean {elsewhere[0]!r}?)" if elsewhere else nearest(field, GROUPS[group])
  raise UserError(f"config: {group} has no field {field!r}{where or ': --help lists them'}")


def _groups_with(field: str) -> list[str]:
  return [f"{group}.{field}" for group, names in GROUPS.items() if field in names]


def unread(name: str, changed: Iterable[str]) -> list[str]:
  """Of the changed fields of the group data, those that the corpus `name` does not read."""
  return [field for field in changed if field not in corpora.READS[name]]
