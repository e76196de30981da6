"""What a user names as a model: a run's folder, a folder of Hugging Face files, or a name on the Hub."""

import os
import pathlib
import re
from typing import NamedTuple

from ml_collections import ConfigDict

from entropy_attn import paths
from entropy_attn.data import hub
from entropy_attn.errors import UserError
from entropy_attn.interop import read
from entropy_attn.progress import say
from entropy_attn.run import folder

# Those of the Hub's names that have no owner.
_ALONE = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
_OWNED = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Source(NamedTuple):
  """Where a model lies.

  Attributes:
    folder: of its files.
    is_run: whether it is a run's; else it is read by `interop.read`.
  """

  folder: pathlib.Path
  is_run: bool


def find(source: str | os.PathLike, what: str = "SOURCE", *, weights: bool = True) -> Source:
  """The folder that a source names, after fetching a model of the Hub that is not in its cache.

  A folder of that name is taken before the Hub.

  Args:
    source: a run's folder, a folder of Hugging Face files, or a name on the Hub: gpt2, distilgpt2, owner/name.
    what: names it in messages, such as "--checkpoint".
    weights: False: of a model of the Hub, fetch what says what it is alone.

  Raises:
    UserError: where there is none, and where the Hub cannot be reached and its cache has none.
  """
  path = paths.expand(source, what)
  if path.exists() or not _on_hub(os.fspath(source)):
    return Source(path, not read.is_model(path))
  patterns = [*read.SETTINGS, *(read.WEIGHTS + read.TOKENIZER if weights else ())]
  try:
    return Source(hub.fetch(os.fspath(source), "model", patterns), False)
  except UserError as error:
    raise UserError(f"{what}={source}: there is no folder of that name here, and {error}") from error


def read_config(source: str | os.PathLike, what: str = "SOURCE") -> ConfigDict:
  """The config of a source's model, without its weights.

  Raises:
    UserError: as `find`, and where the folder holds no model that is computed here.
  """
  found = find(source, what, weights=False)
  if found.is_run:
    return folder.read_config(found.folder)
  config, notes = read.read_config(found.folder)
  for note in notes:
    say(f"note: {note}")
  return config


def _on_hub(name: str) -> bool:
  """Whether a text that is no path here may be a name on the Hub: a folder mistyped below one that is here is none."""
  return name in _ALONE or (_OWNED.fullmatch(name) is not None and not os.path.exists(name.partition("/")[0]))
