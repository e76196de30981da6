"""The config.json of a Hugging Face GPT-2 ↔ our fields: each setting is computed, known to change nothing, or refused.

Settings that a file leaves out have the values that `transformers` gives them.
"""

from collections.abc import Mapping
import re

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import sizes
from entropy_attn.errors import UserError

# Ours of each of theirs, and theirs where the file is silent.
_SIZES = {
  "n_layer": ("num_layers", 12),
  "n_head": ("num_heads", 12),
  "n_embd": ("d_model", 768),
  "n_positions": ("max_positions", 1024),
  "vocab_size": ("vocab_size", 50_257),
}
_NUMBERS = {
  "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
  "embd_pdrop": ("embedding_dropout", 0.1),
  "initializer_range": ("init_std", 0.02),
}
_FLAGS = {"tie_word_embeddings": True, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
_ALIASES = {
  "num_hidden_layers": "n_layer",
  "num_attention_heads": "n_head",
  "hidden_size": "n_embd",
  "max_position_embeddings": "n_positions",
}
# By activation_function: (model.activation, model.gelu). All names of one function are one.
_ACTIVATIONS = {
  "gelu_new": ("gelu", "tanh"),
  "gelu_pytorch_tanh": ("gelu", "tanh"),
  "gelu_fast": ("gelu", "tanh"),
  "gelu_accurate": ("gelu", "tanh"),
  "gelu": ("gelu", "erf"),
  "gelu_python": ("gelu", "erf"),
  "relu": ("relu", "erf"),
  "linear": ("identity", "erf"),
}
# (scale_attn_weights, scale_attn_by_inverse_layer_idx) of each model.score_scale.
_SCORES = {
  "root_width": (True, False),
  "root_width_and_layer": (True, True),
  "layer": (False, True),
  "none": (False, False),
}
assert _SCORES.keys() == sizes.SCORE_SCALES.keys()
# What changes no logit of a forward pass: names, generation, heads of other tasks, training, how it is computed.
_WITHOUT_EFFECT = re.compile(
  r"model_type|architectures|_name_or_path|name_or_path|transformers_version|dtype|torch_dtype|n_ctx|n_special"
  r"|(bos|eos|pad|sep|unk|cls|mask|decoder_start|forced_bos|forced_eos)_token_id|tokenizer_class|prefix"
  r"|summary_\w+|num_labels|_num_labels|id2label|label2id|problem_type|finetuning_task|task_specific_params"
  r"|use_cache|output_(past|attentions|hidden_states|scores)|return_dict|return_dict_in_generate|predict_special_tokens"
  r"|gradient_checkpointing|attn_pdrop|resid_pdrop|reorder_and_upcast_attn|_attn_implementation(_autoset|_internal)?"
  r"|attn_implementation|torchscript|tf_legacy_loss|use_bfloat16|chunk_size_feed_forward|is_decoder"
  r"|do_sample|early_stopping|min_length|max_length|num_beams|num_beam_groups|num_return_sequences|temperature|top_k"
  r"|top_p|typical_p|(repetition|length|diversity|encoder_repetition)_penalty|(encoder_)?no_repeat_ngram_size"
  r"|bad_words_ids|suppress_tokens|begin_suppress_tokens|exponential_decay_length_penalty|remove_invalid_values"
)
_REFUSED = {
  "add_cross_attention": "attention to another model's states is not computed",
  "is_encoder_decoder": "an encoder is not computed",
  "cross_attention_hidden_size": "attention to another model's states is not computed",
  "pruned_heads": "heads of unequal numbers are not computed",
  "quantization_config": "quantised weights are not read: name the folder of the whole weights",
  "auto_map": "code that comes with a model is not run",
}


def of_gpt2(theirs: Mapping, where: str) -> tuple[ConfigDict, list[str]]:
  """The config of a GPT-2 in our fields, and notes for the user, one line each.

  Args:
    theirs: the content of config.json.
    where: names it in messages.

  Raises:
    UserError: for another architecture, or a setting that is not computed here: by its name.
  """
  if theirs.get("model_type") != "gpt2":
    raise UserError(f"{where}: model_type={theirs.get('model_type')!r} is not computed here: a GPT-2 (gpt2) is needed")
  theirs = {_ALIASES.get(name, name): value for name, value in theirs.items()}
  _check_known(theirs, where)
  m = {ours: _number(theirs, name, default, int, where) for name, (ours, default) in _SIZES.items()}
  m |= {ours: _number(theirs, name, default, float, where) for name, (ours, default) in _NUMBERS.items()}
  flags = {name: _flag(theirs, name, default, where) for name, default in _FLAGS.items()}
  scores = flags["scale_attn_weights"], flags["scale_attn_by_inverse_layer_idx"]
  m["score_scale"] = next(name for name, switches in _SCORES.items() if switches == scores)
  m["tie_embeddings"] = flags["tie_word_embeddings"]
  activation = theirs.get("activation_function", "gelu_new")
  if activation not in _ACTIVATIONS:
    raise UserError(f"{where}: activation_function={activation!r} is not computed here, only {', '.join(_ACTIVATIONS)}")
  m["activation"], m["gelu"] = _ACTIVATIONS[activation]
  width = 0 if theirs.get("n_inner") is None else _number(theirs, "n_inner", 0, int, where)
  m["ffn_width"] = 0 if width == 4 * m["d_model"] else width
  config = config_lib.base()
  config.model.update(m, context_length=m["max_positions"], bias="all", dtype="float32")
  config.data.name = "python_source"
  try:
    config_lib.validate(config)
  except UserError as error:
    raise UserError(f"{where}: {error}") from None
  return config, _notes(theirs)


def to_gpt2(model_config, *, end_id: int | None) -> dict:
  """The config.json of a model that `fold.to_gpt2` gave.

  Args:
    end_id: of the end-of-text token, where there is one.
  """
  c = model_config
  named = {pair: name for name, pair in reversed(_ACTIVATIONS.items())}  # the first name of each
  activation = named[c.activation, c.gelu if c.activation == "gelu" else "erf"]
  on, by_layer = _SCORES[c.score_scale]
  return {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    **{name: c[ours] for name, (ours, _) in (_SIZES | _NUMBERS).items()},
    "n_inner": c.ffn_width or None,
    "activation_function": activation,
    "scale_attn_weights": on,
    "scale_attn_by_inverse_layer_idx": by_layer,
    "tie_word_embeddings": c.tie_embeddings,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "bos_token_id": end_id,
    "eos_token_id": end_id,
    "dtype": "float32",
  }


def _check_known(theirs: Mapping, where: str) -> None:
  known = {*_SIZES, *_NUMBERS, *_FLAGS, "activation_function", "n_inner"}
  for name, value in theirs.items():
    nothing = value is None or value is False or value in ({}, [])
    if name in known or nothing or _WITHOUT_EFFECT.fullmatch(name):
      continue
    why = _REFUSED.get(name, "it is no setting of a GPT-2, and what it changes is not known")
    raise UserError(f"{where}: {name}={_shown(value)} is refused: {why}")


def _notes(theirs: Mapping) -> list[str]:
  dropped = [f"{name}={theirs[name]}" for name in ("attn_pdrop", "resid_pdrop") if theirs.get(name)]
  if not dropped:
    return []
  return [f"{' and '.join(dropped)} act in training alone, and not here: model.embedding_dropout is all there is"]


def _number(theirs: Mapping, name: str, default, kind: type, where: str):
  value = theirs.get(name, default)
  if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
    raise UserError(f"{where}: {name}={_shown(value)} is not a{'n integer' if kind is int else ' number'}")
  return kind(value)


def _flag(theirs: Mapping, name: str, default: bool, where: str) -> bool:
  value = theirs.get(name, default)
  if not isinstance(value, bool):
    raise UserError(f"{where}: {name}={_shown(value)} is neither true nor false")
  return value


def _shown(value) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:77]}…"
