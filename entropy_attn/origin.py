"""A trained model that a field of a config names, to start from or to learn from: found, identified, laid out."""

import contextlib
import dataclasses
import hashlib
import pathlib

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn.data.pipeline import Dataset
from entropy_attn.data.tokenizer import Tokenizer
from entropy_attn.errors import UserError
from entropy_attn.run import checkpoint, folder, pretrained, source, text
from entropy_attn.train_step import abstract_state


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a field names.

  Attributes:
    field: its name.
    value: its value, as the user wrote it.
    config: of the model.
    folder: of the run; None for a model that is none of ours.
    loaded: a model that is no run's.
  """

  field: str
  value: str
  config: ConfigDict
  folder: pathlib.Path | None
  loaded: pretrained.Pretrained | None = None

  @property
  def named(self) -> str:
    """'field=value', as messages begin."""
    return f"{self.field}={self.value}"

  @property
  def tokenizer(self) -> Tokenizer | None:
    """That of its tokens; None where it is not known.

    Raises:
      UserError: for a damaged one.
    """
    if self.folder:
      return text.read_tokenizer(self.folder)
    with contextlib.suppress(UserError):
      return self.loaded.tokenizer
    return None


def find(field: str, value: str) -> Origin:
  """The model that a field names.

  Raises:
    UserError: where there is none, or it cannot be read.
  """
  try:
    found = source.find(value, field)
    if found.is_run:
      return Origin(field, value, folder.read_config(found.folder), found.folder)
    loaded = pretrained.load(value, what=field)
    return Origin(field, value, loaded.config, None, loaded)
  except UserError as error:
    told = str(error)
    raise UserError(told if told.startswith(f"{field}=") else f"{field}={value}: {told}") from None


def check_text(origin: Origin, dataset: Dataset) -> None:
  """Raises UserError where a model has another tokenizer than the dataset, as far as both are known."""
  theirs, ours = origin.tokenizer, dataset.tokenizer
  if theirs is not None and ours is not None and theirs.fingerprint != ours.fingerprint:
    file = origin.folder / theirs.file[0] if origin.folder else origin.value
    raise UserError(
      f"{origin.named} has another tokenizer than the text, so that its tokens are not the text's; train with "
      f"--config.data.tokenizer={file}"
    )


def restore(origin: Origin, mesh, step: int | None = None) -> tuple[dict, int | None]:
  """(variables, step): its weights on a mesh, and the step of a run's checkpoint.

  Args:
    step: of a run's checkpoint; None: the newest that can be read.

  Raises:
    UserError: where its checkpoint is not there or cannot be read.
  """
  abstract = abstract_state(origin.config, mesh)
  if origin.folder:
    try:
      return checkpoint.restore_variables(origin.folder, abstract, step)
    except UserError as error:
      raise UserError(f"{origin.named}: {error}") from None
  lay = lambda leaf, like: jax.make_array_from_callback(like.shape, like.sharding, lambda index: leaf[index])
  host = jax.tree.map(np.asarray, dict(origin.loaded.variables))
  return jax.tree.map(lay, host, abstract.variables), None


def identity(origin: Origin, variables: dict, step: int | None) -> dict:
  """Which model it is, ready for JSON: its weights by their fingerprint, and where they are from."""
  run = {"step": step, "git_commit": folder.commit_of(origin.folder)} if origin.folder else {}
  known = {"source": origin.value, "architecture": config_lib.architecture_name(origin.config)}
  return known | run | {"weights": fingerprint(variables)}


def fingerprint(variables: dict) -> str:
  """32 hex digits of all arrays of a model: their names, shapes, dtypes and values, wherever they lie."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    whole = getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated
    host = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
    digest.update(f"{jax.tree_util.keystr(path)} {host.dtype} {host.shape}".encode())
    digest.update(np.ascontiguousarray(host).data)
  return digest.hexdigest()
