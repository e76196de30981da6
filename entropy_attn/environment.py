"""What a run's folder says of the machine and code that made it."""

from importlib import metadata
import pathlib
import platform
import subprocess
import sys

import jax

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
