"""What a study trains: runs, from a study file, and the config and the command of each."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
import re
import sys

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import config_file, fields
from entropy_attn.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study: its folder's name, a config (FILE or FILE:ARGUMENT), and overrides {"group.field": value}."""

  name: str
  config: str
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)


def load_study(path: pathlib.Path) -> list[Run]:
  """The runs of a study file.

  Raises:
    UserError: for a missing file or function, no runs, or names that are not distinct and fit for folders.
  """
  runs = config_file.call(path, "get_study")
  if not isinstance(runs, Sequence) or not all(isinstance(run, Run) for run in runs):
    raise UserError(f"{path}: get_study() must return a list of Run, from entropy_attn.study")
  names = [run.name for run in runs]
  if not runs:
    raise UserError(f"{path}: get_study() returns no runs")
  for name in names:
    if not re.fullmatch(r"\w[\w.+-]*", str(name)):
      raise UserError(f"{path}: the run name {name!r} is not fit for a folder: use letters, digits and _ . + -")
    if names.count(name) > 1:
      raise UserError(f"{path}: two runs are named {name!r}")
  return list(runs)


def load_config(run: Run) -> ConfigDict:
  """The validated config of a run: what its training command will see.

  Raises:
    UserError: for a missing file, an unknown field or a value that does not fit.
  """
  try:
    config = config_file.load(run.config, run.overrides)
    config_lib.validate(config)
  except UserError as error:
    raise UserError(f"run {run.name!r}: {error}") from error
  return config


def command(run: Run, folder: pathlib.Path) -> list[str]:
  """The command line that trains a run, or goes on with it."""
  overrides = [f"--config.{name}={fields.find(name).shown(value)}" for name, value in run.overrides.items()]
  main = [sys.executable, "-m", "entropy_attn.main"]
  return [*main, f"--config={run.config}", f"--workdir={folder}", *overrides]


def chosen(runs: Sequence[Run], only: Iterable[str]) -> list[Run]:
  """The runs named in `only`, or all.

  Raises:
    UserError: for a name that is none of theirs.
  """
  names = [run.name for run in runs]
  for name in only:
    check_choice("--only", name, names)
  return [run for run in runs if not only or run.name in only]
