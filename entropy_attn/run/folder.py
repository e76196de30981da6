"""A run's folder: the names and formats of its files. A file is written whole or not at all.

config.json           the config that made the run
environment.json      versions, git commit, command and devices of its last start
summary.json          what it reached (`summary`)
metrics.jsonl         its course, one line a record (`metrics`), and the same in tensorboard/
checkpoints/          its states (`checkpoint`)
private_profile.json  its last private inference, and the PNG files of `report`
"""

from collections.abc import Mapping
from importlib import metadata
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError

_PACKAGES = (
  "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "tokenizers", "numpy",
)  # fmt: skip
# Fields that may change between two starts of a run: none of them alters what is computed.
_FREE = (
  "mesh.", "eval.", "data.data_dir", "model.attention", "model.remat",
  "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.on_nonfinite",
)  # fmt: skip
# Fields of the model that may change when a checkpoint is only evaluated.
_FREE_IN_EVALUATION = (
  "model.context_length", "model.dtype", "model.attention", "model.remat", "model.embedding_dropout",
)  # fmt: skip


def make(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the folder, once for all processes, with config.json and environment.json.

  Raises:
    UserError: where it cannot be made, or the processes do not see one folder.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
  _wait_for_all("run folder checked")  # none may still be reading the config.json that is written now
  if jax.process_index() == 0:
    _write(workdir / "config.json", config.to_json(indent=2))
    write_json(workdir, "environment.json", describe())
  _wait_for_all("run folder made")
  if jax.process_count() > 1:
    seen = multihost_utils.process_allgather(np.array((workdir / "config.json").exists()))
    if not seen.all():  # Orbax would wait for the others' files without end
      raise UserError(
        f"--workdir={workdir}: {np.sum(~seen)} of {seen.size} processes do not see what the first one writes there; "
        "name a folder that all machines share"
      )


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The config that made the run of a folder.

  Raises:
    UserError: if the folder holds no run, or its config.json cannot be read.
  """
  config = _found_config(workdir)
  if config is None:
    raise UserError(f"{workdir} holds no run (no config.json): train first, or correct the folder's name")
  return config


def check_same_run(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Raises UserError, naming the differing fields, if the folder holds a run of another config."""
  saved = _found_config(workdir)
  different = [line for line in config_lib.differences(saved, config) if not line.startswith(_FREE)] if saved else []
  if different:
    raise UserError(f"{workdir} holds a run of another config ({'; '.join(different)}): choose another --workdir")


def check_same_model(workdir: pathlib.Path, config: ConfigDict) -> ConfigDict:
  """The saved config of a run, after checking that `config` describes the same model.

  Raises:
    UserError: if the folder holds no run, another architecture, or one with fewer positions than are asked for.
  """
  saved = read_config(workdir)
  lines = config_lib.differences(ConfigDict({"model": saved.model}), ConfigDict({"model": config.model}))
  asked = config.model.context_length
  held = saved.model.context_length if saved.model.temperature == "per_head_position" else saved.model.max_positions
  if asked > held:
    raise UserError(
      f"model.context_length={asked} exceeds the {held} positions of the checkpoint in {workdir}: ask for fewer"
    )
  different = [line for line in lines if not line.startswith(_FREE_IN_EVALUATION)]
  if different:
    raise UserError(f"the checkpoint in {workdir} is of another architecture ({'; '.join(different)})")
  return saved


def write_json(workdir: pathlib.Path, name: str, value: Mapping) -> pathlib.Path:
  """Writes one of the folder's JSON files; returns its path."""
  return _write(workdir / name, json.dumps(value, indent=2))


def write_figures(workdir: pathlib.Path, figures: Mapping) -> list[pathlib.Path]:
  """Writes matplotlib Figures, by their names, as PNG files; returns their paths."""
  paths = [workdir / f"{name}.png" for name in figures]
  for path, figure in zip(paths, figures.values(), strict=True):
    figure.savefig(unfinished(path), format="png")
    os.replace(unfinished(path), path)
  return paths


def write_profile(workdir: pathlib.Path, profile: Mapping, figure) -> list[pathlib.Path]:
  """Writes the last private inference of a run's model as JSON and as a matplotlib Figure; returns their paths."""
  name = "private_profile"
  return [write_json(workdir, f"{name}.json", profile), *write_figures(workdir, {name: figure})]


def unfinished(path: pathlib.Path) -> pathlib.Path:
  """What a file is called until it is whole."""
  return path.with_name(f".{path.name}.unfinished")


def describe() -> dict:
  """Versions, git commit, command and devices, ready for JSON."""
  return {
    "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    "git_commit": git_commit(),
    "python": platform.python_version(),
    "platform": platform.platform(),
    "packages": {name: metadata.version(name) for name in _PACKAGES},
    "devices": [f"{device.device_kind} ({device.platform})" for device in jax.devices()],
    "processes": jax.process_count(),
  }


def git_commit() -> str | None:
  """The commit of this code, with '+changes' where files differ from it; None outside a git checkout."""
  root = pathlib.Path(__file__).parent
  try:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _found_config(workdir: pathlib.Path) -> ConfigDict | None:
  """The config in a folder; None in one that holds no run."""
  path = workdir / "config.json"
  if not path.exists():
    return None
  try:
    return ConfigDict(json.loads(path.read_text()))
  except ValueError as error:
    raise UserError(f"{path} is not a run's config: {error}") from error


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
  unfinished(path).write_text(text + "\n")
  os.replace(unfinished(path), path)
  return path


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
