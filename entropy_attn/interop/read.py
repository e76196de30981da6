"""A folder that holds a model → its config and variables: a Hugging Face GPT-2, or one of ours that `write` made."""

from collections.abc import Mapping
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import files
from entropy_attn.errors import UserError, one_line, shorten
from entropy_attn.interop import keys, settings
from entropy_attn.interop.tensors import Tensors

CONFIG = "config.json"
OWN = "entropy_attn"  # the model_type of what is no GPT-2: nothing else opens it as one
GROUPS = ("model", "regularizer", "curriculum")  # of our config, what such a folder keeps
# What of a repository is read.
SETTINGS, WEIGHTS = [CONFIG], ["model*.safetensors", "model.safetensors.index.json"]
TOKENIZER = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"]


class Read(NamedTuple):
  """A model.

  Attributes:
    variables: what `model.GPT(config).apply` takes, NumPy float32.
    notes: for the user, one line each.
  """

  config: ConfigDict
  variables: dict
  notes: list[str]


def is_model(folder: pathlib.Path) -> bool:
  """Whether a folder says that it holds a model of this form: its config.json names a model_type."""
  try:
    return "model_type" in (files.read_json(folder / CONFIG) or {})
  except (OSError, ValueError):  # whoever reads it says what is wrong
    return False


def read_config(folder: pathlib.Path) -> tuple[ConfigDict, list[str]]:
  """The config of a folder's model, and notes.

  Raises:
    UserError: where there is none, or it is of a model that is not computed here.
  """
  path = folder / CONFIG
  try:
    content = files.read_json(path)
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again") from error
  if content is None:
    raise UserError(f"{folder} holds no model (no {CONFIG}): correct the folder's name")
  if content.get("model_type") == OWN:
    return _own_config(content, str(path)), []
  return settings.of_gpt2(content, str(path))


def read(folder: pathlib.Path) -> Read:
  """A folder's model.

  Raises:
    UserError: where a file or tensor is missing, too much, damaged or of another shape, or the model is not computed
      here.
  """
  config, notes = read_config(folder)
  tensors = Tensors(folder)
  if (files.read_json(folder / CONFIG) or {})["model_type"] == OWN:
    return Read(config, _own_variables(config, tensors, folder), notes)
  names = {keys.plain(name): name for name in tensors.shapes}
  names.pop(None, None)
  heads = sorted(name for name in names if keys.is_other_head(name))
  if heads:
    notes = [*notes, f"{shorten(heads)}: a head of another task, which is left out"]
  there = {name: tensors.shapes[theirs] for name, theirs in names.items() if name not in heads}
  wanted, m = keys.shapes(config.model), config.model
  tied_too = m.tie_embeddings and there.get(keys.HEAD) == (m.vocab_size, m.d_model)
  if tied_too:
    _check_tied(tensors, names, folder)
  _check_shapes(wanted, {name: shape for name, shape in there.items() if not (tied_too and name == keys.HEAD)}, folder)
  params = keys.to_params(lambda name: tensors(names[name]), config.model)
  return Read(config, {"params": params}, notes)


def flat(tree: Mapping, above: str = "") -> dict[str, np.ndarray]:
  """Variables by the names of a folder of ours, such as params.blocks.q.kernel."""
  found = {}
  for name, value in tree.items():
    whole = f"{above}{name}"
    found |= flat(value, f"{whole}.") if isinstance(value, Mapping) else {whole: np.asarray(value)}
  return found


def _own_config(content: Mapping, where: str) -> ConfigDict:
  try:
    config = config_lib.completed(ConfigDict({group: dict(content[group]) for group in GROUPS}))
    config.data.name = "python_source"
    config_lib.validate(config)
    return config
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{where} is not what entropy_attn.export writes: {one_line(error)}") from error
  except UserError as error:
    raise UserError(f"{where}: {error}") from None


def _own_variables(config: ConfigDict, tensors: Tensors, folder: pathlib.Path) -> dict:
  # Only here: the shapes of a GPT-2 are known without them.
  import jax
  import jax.numpy as jnp

  from entropy_attn.model import GPT

  tree = dict(jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
  names = jax.tree_util.tree_map_with_path(lambda path, _: ".".join(key.key for key in path), tree)
  wanted = {name: leaf.shape for name, leaf in zip(jax.tree.leaves(names), jax.tree.leaves(tree), strict=True)}
  _check_shapes(wanted, tensors.shapes, folder)
  return jax.tree.map(tensors, names)


def _check_tied(tensors: Tensors, names: Mapping[str, str], folder: pathlib.Path) -> None:
  if not np.array_equal(tensors(names[keys.HEAD]), tensors(names["wte.weight"])):
    raise UserError(
      f"{folder}: {keys.HEAD} differs from wte.weight, and tie_word_embeddings says that they are one: set it to false "
      f"in {CONFIG} if the head is one of its own"
    )


def _check_shapes(wanted: Mapping, there: Mapping, folder: pathlib.Path) -> None:
  missing, more = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys())
  if missing:
    raise UserError(f"{folder} lacks {len(missing)} tensors that its {CONFIG} asks for: {shorten(missing)}")
  if more:
    raise UserError(f"{folder} holds {len(more)} tensors that its {CONFIG} does not explain: {shorten(more)}")
  for name, shape in wanted.items():
    if tuple(there[name]) != tuple(shape):
      raise UserError(f"{folder}: {name} is {list(there[name])}, and {CONFIG} makes it {list(shape)}")
