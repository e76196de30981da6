"""The state of a run that starts from a trained model: init.source.

A parameter of both is copied. One that the model has and its source has not begins as in training from scratch; one
that the source has and the model has not is left out: both are named. What would make the copy another model than it
was (sizes, a position table that is too short) is refused. So the model is its source at step 0 exactly, wherever
nothing is left out and what begins is neutral: a temperature, alpha and beta of 1, biases of 0.

A normalised linear takes the kernel, and as its gain the kernel's own norm: of each output unit (weight) or of the
whole (sigma). A source whose linears are normalised, or whose curriculum has ended, is folded into plain ones first.
A position table, and a temperature a position, are cut to those that the model has; a temperature a head is repeated
over positions. An untied vocabulary projection starts as a tied one was.

Letters in array names: L layers, D model width, V vocabulary.
"""

from collections.abc import Mapping
import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from entropy_attn import curriculum, fields, reparam, sharding, sizes
from entropy_attn import origin as origin_lib
from entropy_attn.data import corpora
from entropy_attn.data.tokenizer import Tokenizer
from entropy_attn.errors import UserError
from entropy_attn.model import BIASED
from entropy_attn.origin import Origin
from entropy_attn.train_step import TrainState, init_state

# Fields of the model that `_disagreements` need not compare, or compares by what they mean: all others must be equal.
_MAY_DIFFER = (
  "context_length", "max_positions", "norm", "activation", "gelu", "ffn", "ffn_width", "residual_scaling", "alpha_init",
  "beta_init", "reparam", "reparam_targets", "temperature", "temperature_init", "temperature_form", "bias",
  "tie_embeddings", "embedding_dropout", "init_std", "ffn_out_init", "attention_out_init", "ffns_removed", "dtype",
  "remat", "attention",
)  # fmt: skip
_LAYERS = "layers"  # in a path, for all stacks of blocks
_POWER_STEPS = 200  # of the power iteration on a copied kernel, whose estimate one step of training then hardly moves


@dataclasses.dataclass(frozen=True)
class Changes:
  """What becomes of the parameters, by their names without their stack: of layers, [L, …] in all.

  Attributes:
    copied, new, gone: in both; in the model alone; in its source alone.
    differs: each reason for which the model is another function than its source at step 0.
  """

  copied: tuple[str, ...]
  new: tuple[str, ...]
  gone: tuple[str, ...]
  differs: tuple[str, ...]

  @property
  def lines(self) -> list[str]:
    """For the user."""
    parts = [f"{len(self.copied)} parameters copied"]
    parts += [f"new: {', '.join(self.new)}"] if self.new else []
    parts += [f"left out: {', '.join(self.gone)}"] if self.gone else []
    differs = f"note: at step 0 it is another function than its source: {'; '.join(self.differs)}"
    return ["; ".join(parts), *([differs] if self.differs else [])]


def find(config: ConfigDict) -> Origin | None:
  """The model that init.source names, after checking that it fits; None where it names none.

  Raises:
    UserError: where it is missing, or fields disagree: all of them at once, with both values.
  """
  if not config.init.source:
    return None
  origin = origin_lib.find("init.source", config.init.source)
  wrong = _disagreements(config, origin.config.model)
  if wrong:
    told = [f"model.{name} is {theirs} there and {ours} here" for name, theirs, ours in wrong]
    flags = " ".join(_typed(name, theirs) for name, theirs, _ in wrong)
    raise UserError(f"{origin.named} does not fit the model: {'; '.join(told)}: set {flags}, or name another source")
  return origin


def tokenizer_for(origin: Origin, config: ConfigDict) -> Tokenizer | None:
  """The tokenizer that the text of a run is read by: its source's; None where the config names one.

  Raises:
    UserError: where nobody names one.
  """
  if config.data.tokenizer or config.data.name == corpora.IN_PLACE:
    return None
  if origin.tokenizer is None:
    raise UserError(f"{origin.named} has no tokenizer: name the one of its tokens, --config.data.tokenizer=FILE")
  return origin.tokenizer


def state_from(origin: Origin, config: ConfigDict, abstract: TrainState, mesh) -> tuple[TrainState, Changes, dict]:
  """The state before step 1 on a mesh, what became of the parameters, and the source's identity.

  Args:
    abstract: `abstract_state` of the config.

  Raises:
    UserError: where the source's weights cannot be read, or its own curriculum has not ended.
  """
  variables, step = origin_lib.restore(origin, mesh)
  who = origin_lib.identity(origin, variables, step)
  try:
    plain, of_source = curriculum.fold(variables, origin.config.model)
  except UserError as error:
    raise UserError(f"{origin.named}: {error}") from None
  begin = jax.jit(lambda params: started(config, of_source, params), out_shardings=sharding.of(abstract))
  return begin(plain["params"]), changes(config, of_source, plain["params"], abstract.params["model"]), who


def started(config: ConfigDict, of_source: ConfigDict, theirs: Mapping) -> TrainState:
  """The state before step 1, pure: `init_state` with the parameters of a source.

  Args:
    config: of the run.
    of_source: the source's model group.
    theirs: the source's parameters, plain (`curriculum.fold`).
  """
  state = init_state(config)
  params = _copied(state.params["model"], _adapted(config.model, of_source, theirs))
  model_state = _normalise(params, state.model_state, config.model)
  if curriculum.COLLECTION in model_state:
    model_state = curriculum.unseen(model_state)
  return state.replace(params=state.params | {"model": params}, model_state=model_state)


def changes(config: ConfigDict, of_source: ConfigDict, theirs: Mapping, ours: Mapping) -> Changes:
  """What becomes of the parameters; theirs, plain, and ours may be arrays or their shapes."""
  held, ours = jax.eval_shape(_merged, theirs), jax.eval_shape(_merged, ours)
  usable = jax.eval_shape(lambda params: _adapted(config.model, of_source, params), theirs)
  wanted = [name for name in ours if name[-1] != "gain"]  # it follows from the kernel
  shown = lambda names: tuple(sorted("/".join(name[1:] if name[0] == _LAYERS else name) for name in names))
  return Changes(
    copied=shown(name for name in wanted if name in usable),
    new=shown(name for name in wanted if name not in usable),
    gone=shown(name for name in held if name not in wanted or name not in usable),
    differs=tuple(_differences_at_start(config, of_source)),
  )


def _disagreements(config: ConfigDict, theirs: ConfigDict) -> list[tuple[str, object, object]]:
  """(field, the source's value, the model's) of each that must agree and does not."""
  ours = config.model
  names = [name for name in ours if name not in _MAY_DIFFER and ours[name] != theirs[name]]
  names += ["tie_embeddings"] if ours.tie_embeddings and not theirs.tie_embeddings else []
  names += ["ffns_removed"] if ours.ffns_removed < theirs.ffns_removed else []
  names += ["gelu"] if ours.gelu != theirs.gelu and _begins(config)["activation"] == theirs.activation == "gelu" else []
  if _keeps_temperature(ours, theirs) and ours.temperature_form != theirs.temperature_form:
    names.append("temperature_form")
  names += ["max_positions"] if ours.max_positions > theirs.max_positions else []
  wrong = [(name, theirs[name], ours[name]) for name in names]
  if sizes.ffn_width(ours) != sizes.ffn_width(theirs) and ours.d_model == theirs.d_model:
    wrong.append(("ffn_width", sizes.ffn_width(theirs), sizes.ffn_width(ours)))
  longest = theirs.context_length if theirs.temperature == "per_head_position" else theirs.max_positions
  wrong += [("context_length", longest, ours.context_length)] if ours.context_length > longest else []
  return wrong


def _typed(name: str, value) -> str:
  return f"--config.model.{name}={fields.FIELDS[f'model.{name}'].shown(value)}"


def _begins(config: ConfigDict) -> dict[str, str]:
  """Norm and activation of a config's model at step 0."""
  group = config.curriculum if config.curriculum.until else config.model
  return {name: group[name] for name in ("norm", "activation")}


def _keeps_temperature(ours: ConfigDict, theirs: ConfigDict) -> bool:
  repeated = (ours.temperature, theirs.temperature) == ("per_head_position", "per_head")
  return theirs.temperature != "none" and (repeated or ours.temperature == theirs.temperature)


def _differences_at_start(config: ConfigDict, theirs: ConfigDict) -> list[str]:
  """All that makes the model another function than its source at step 0."""
  ours = config.model
  now = {name: ours[name] for name in ("ffn", "ffns_removed")} | _begins(config)
  lines = [f"{name} {theirs[name]} → {value}" for name, value in now.items() if value != theirs[name]]
  lost = set(BIASED[theirs.bias]) - set(BIASED[ours.bias])
  lines += [f"bias {theirs.bias} → {ours.bias}"] if lost else []
  if theirs.residual_scaling and not ours.residual_scaling:
    lines.append("residual_scaling true → false")
  if ours.residual_scaling and not theirs.residual_scaling:
    lines += [f"{name} {ours[name]}, not 1" for name in ("alpha_init", "beta_init") if ours[name] != 1]
  kept = _keeps_temperature(ours, theirs)
  if theirs.temperature != "none" and not kept:
    lines.append(f"temperature {theirs.temperature} → {ours.temperature}")
  if ours.temperature != "none" and not kept and ours.temperature_init != 1:
    lines.append(f"temperature_init {ours.temperature_init}, not 1")
  return lines


def _merged(params: Mapping) -> dict[tuple, jax.Array]:
  """Parameters by their paths, where those of all stacks are under one name: of layers, [L, …] or of the first few."""
  stacks = [traverse_util.flatten_dict(dict(stack)) for stack in reparam.stacks_of(params)]
  rest = traverse_util.flatten_dict({name: part for name, part in params.items() if name not in reparam.STACKS})
  names = {name: None for stack in stacks for name in stack}
  parts = {name: [stack[name] for stack in stacks if name in stack] for name in names}
  joined = lambda leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
  return rest | {(_LAYERS, *name): joined(leaves) for name, leaves in parts.items()}


def _adapted(ours: ConfigDict, of_source: ConfigDict, theirs: Mapping) -> dict[tuple, jax.Array]:
  """A source's parameters by their paths (`_merged`), as far as the model can use them: in its shapes."""
  usable, temperature = _merged(theirs), (_LAYERS, "temperature")
  usable["position_embedding",] = usable["position_embedding",][: ours.max_positions]
  usable.setdefault(("head",), usable["token_embedding",].T)
  if not _keeps_temperature(ours, of_source):
    usable.pop(temperature, None)
  elif ours.temperature == "per_head_position":
    of_source = usable[temperature] if usable[temperature].ndim == 3 else usable[temperature][..., None]
    shape = (*of_source.shape[:2], ours.context_length)
    usable[temperature] = jnp.broadcast_to(of_source[..., : ours.context_length], shape)
  return usable


def _copied(ours: Mapping, theirs: Mapping[tuple, jax.Array]) -> dict:
  """The model's parameters with those of its source."""
  flat, first = {}, {}
  for stack in (name for name in reparam.STACKS if name in ours):
    first[stack] = sum(len(ours[name]["q"]["kernel"]) for name in first)
  for name, leaf in traverse_util.flatten_dict(dict(ours)).items():
    if name[0] not in first:
      flat[name] = theirs.get(name, leaf)
    else:
      whole, begin = theirs.get((_LAYERS, *name[1:])), first[name[0]]
      flat[name] = leaf if whole is None else whole[begin : begin + len(leaf)]
  return traverse_util.unflatten_dict(flat)


def _normalise(params: dict, model_state: Mapping, ours: ConfigDict) -> dict:
  """Sets gains in the parameters, so that normalised linears are the plain ones; returns the model's state for them."""
  model_state = jax.tree.map(lambda x: x, dict(model_state))
  for stack in (name for name in reparam.STACKS if name in params):
    for name, linear in params[stack].items():
      kind = reparam.kind_of(name, ours) if isinstance(linear, Mapping) else "none"
      if kind == "weight":
        linear["gain"] = reparam.column_norms(linear["kernel"])
      elif kind == "sigma":
        vectors = model_state["spectral"][stack][name]
        more = lambda _, u, kernel=linear["kernel"]: reparam.power_iteration(kernel, u)
        vectors["u"] = jax.lax.fori_loop(0, _POWER_STEPS, more, vectors["u"])
        linear["gain"] = reparam.spectral_norm(linear["kernel"], vectors["u"])
  return model_state
