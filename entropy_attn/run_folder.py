"""A run's folder: made once for all processes, and what it says of the machine and code that made it."""

from importlib import metadata
import json
import pathlib
import platform
import subprocess
import sys

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

from entropy_attn.errors import UserError

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "tokenizers",
  "numpy",
)


def make(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the folder with config.json and environment.json.

  Raises:
    UserError: where it cannot be made, or the processes do not see one folder.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
  _wait_for_all("run folder checked")  # none may still be reading the config.json that is written now
  if jax.process_index() == 0:
    (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
    (workdir / "environment.json").write_text(json.dumps(describe(), indent=2) + "\n")
  _wait_for_all("run folder made")
  if jax.process_count() > 1:
    seen = multihost_utils.process_allgather(np.array((workdir / "config.json").exists()))
    if not seen.all():  # Orbax would wait for the others' files without end
      raise UserError(
        f"--workdir={workdir}: {np.sum(~seen)} of {seen.size} processes do not see what the first one writes there; "
        "name a folder that all machines share"
      )


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


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
