"""A run's folder: the names of its files, who may write there, and what made it. Files are written whole (`files`).

config.json           the config that made the run
environment.json      versions, git commit, command and devices of its last start, a line for each start, and the
                      identity of the models that it started from and learns from
tokenizer.json|.model its tokenizer; dataset.json and sample.npz: what its text was (`text`)
summary.json          what it reached (`summary`)
metrics.jsonl         its course, one line a record (`metrics`), and the same in tensorboard/
checkpoints/          its states (`checkpoint`)
private_profile_*     its private inferences, each a JSON and a PNG file of its own (`write_profile`)
report.html           all that as a page, where `report.page` could be written
.lock                 held by the process that writes here
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import datetime
import hashlib
from importlib import metadata
import itertools
import json
import pathlib
import platform
import shlex
import subprocess
import sys

import jax
from jax.experimental import multihost_utils
import matplotlib
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import __version__, files, locks, owned
from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.interop import read

_CONFIG, _ENVIRONMENT = "config.json", "environment.json"
_PACKAGES = (
  "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "tokenizers", "numpy",
)  # fmt: skip
# Fields that may change between two starts of a run: none of them alters what is computed.
_FREE = (
  "mesh.", "eval.", "data.data_dir", "model.attention", "model.remat", "train.profile_steps",
  "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.on_nonfinite",
)  # fmt: skip
# Fields of the model that may change when a checkpoint is only evaluated.
_FREE_IN_EVALUATION = (
  "model.context_length", "model.dtype", "model.attention", "model.remat", "model.embedding_dropout",
)  # fmt: skip


class Damaged(UserError):
  """A file of the folder that cannot be read as what it is to be."""


class Busy(UserError):
  """Another process works in the folder."""


@contextlib.contextmanager
def opened(workdir: pathlib.Path) -> Iterator[None]:
  """Makes a run's folder and holds its lock meanwhile, once for all processes.

  Raises:
    UserError: where it cannot be made, another process works in it (Busy), or the processes do not see one folder.
  """
  lock = locks.Lock(workdir / ".lock")

  def take():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      owned.mark(workdir)
      lock.acquire()
    except locks.Held as held:
      raise Busy(f"{workdir} is in use by {held}: wait for it, stop it, or choose another --workdir") from None
    except OSError as error:
      raise UserError(f"--workdir={workdir} cannot be made or written: {error.strerror}") from error

  first_alone(take)
  try:
    if jax.process_count() > 1:
      seen = multihost_utils.process_allgather(np.array((workdir / ".lock").exists()))
      if not seen.all():  # Orbax would wait for the others' files without end
        raise UserError(
          f"--workdir={workdir}: {np.sum(~seen)} of {seen.size} processes do not see what the first one writes there; "
          "name a folder that all machines share"
        )
    yield
  finally:
    lock.release()


def record(workdir: pathlib.Path, config: ConfigDict, sources: Mapping[str, Mapping] | None = None) -> list[str]:
  """Writes config.json and environment.json of this start; returns 'name: old → new' for what changed since the last.

  That is fields of the config, the git commit, versions and devices.

  Args:
    sources: by the field that names it, the identity of a trained model that this start reads; others' are kept.
  """
  saved = _found_config(workdir)
  changed = config_lib.differences(saved, config) if saved else []
  before = _environment(workdir)
  now = describe()
  old, new = _versions(before), _versions(now)
  changed += [f"{name}: {old[name]} → {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
  start = {name: now[name] for name in ("time", "command", "git_commit")} | {"changed": changed}
  files.write_bytes(workdir / _CONFIG, (config.to_json(indent=2) + "\n").encode())
  models = {**before.get("sources", {}), **(sources or {})}
  starts = {"starts": [*before.get("starts", []), start]} | ({"sources": models} if models else {})
  files.write_json(workdir / _ENVIRONMENT, now | starts)
  return changed


def check_same_sources(workdir: pathlib.Path, sources: Mapping[str, Mapping]) -> None:
  """Raises UserError where a trained model that a field names has other weights than when the run read it before."""
  before = _environment(workdir).get("sources", {})
  for field, now in sources.items():
    old = before.get(field, now)
    if old["weights"] != now["weights"]:
      told = [f"weights {who['weights'][:8]}{_at_step(who)}" for who in (old, now)]
      raise UserError(
        f"{field}={now['source']} is not the model that the run in {workdir} read until now ({' → '.join(told)}): "
        "restore it, or choose another --workdir"
      )


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The config that made the run of a folder.

  Raises:
    UserError: if the folder holds no run, or its config.json cannot be read.
  """
  config = _found_config(workdir)
  if config is None:
    raise UserError(f"{workdir} holds no run (no {_CONFIG}): train first, or correct the folder's name")
  return config


def check_same_run(workdir: pathlib.Path, config: ConfigDict) -> list[str]:
  """'group.field: old → new' for each field that may differ and does, from the run of a folder.

  Raises:
    UserError: naming the differing fields, if the folder holds a run of another config.
  """
  saved = _found_config(workdir)
  lines = config_lib.differences(saved, config) if saved else []
  different = [line for line in lines if not line.startswith(_FREE)]
  if different:
    raise UserError(f"{workdir} holds a run of another config ({'; '.join(different)}): choose another --workdir")
  return lines


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


def write_figures(workdir: pathlib.Path, figures: Mapping, formats: Sequence[str] = ("png",)) -> list[pathlib.Path]:
  """Writes matplotlib Figures, by their names, in each format (png, pdf); returns their paths.

  A figure drawn again is the same file: no date is in it. A PDF holds its fonts as TrueType, which printers ask for.
  """
  paths = []
  with matplotlib.rc_context({"pdf.fonttype": 42}):
    for (name, figure), form in itertools.product(figures.items(), formats):
      path = workdir / f"{name}.{form}"
      figure.savefig(files.unfinished(path), format=form, metadata={"CreationDate": None} if form == "pdf" else None)
      paths.append(files.finish(path))
  return paths


def write_profile(workdir: pathlib.Path, profile: Mapping, figure) -> list[pathlib.Path]:
  """Writes a private inference of a run's model as JSON and as a matplotlib Figure; returns their paths.

  They are named by its layers, tokens and transforms, and counted from the second on: none is overwritten.
  """
  transforms = hashlib.sha256(json.dumps(profile["transforms"], sort_keys=True).encode()).hexdigest()[:8]
  stem = f"private_profile_L{profile['measured_layers']}_T{profile['length']}_{transforms}"
  names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
  name = next(name for name in names if not (workdir / f"{name}.json").exists())
  return [files.write_json(workdir / f"{name}.json", profile), *write_figures(workdir, {name: figure})]


def read_profiles(workdir: pathlib.Path) -> list[dict]:
  """What `write_profile` wrote into a run's folder, the newest last; a damaged file is left out."""
  found = []
  for path in sorted(workdir.glob("private_profile_*.json"), key=lambda path: path.stat().st_mtime):
    with contextlib.suppress(OSError, ValueError):
      found.append(files.read_json(path))
  return [profile for profile in found if profile]


def holds_run(workdir: pathlib.Path) -> bool:
  """Whether a folder is that of a run, and not of Hugging Face files, which have a file of that name, too."""
  return (workdir / _CONFIG).is_file() and not read.is_model(workdir)


def stamps(workdir: pathlib.Path) -> list[tuple[str, int, int]]:
  """Name, time and size of the files that a run's course changes, for whoever waits for news of it."""
  changing = [*workdir.glob("*.json"), *workdir.glob("*.jsonl")]
  found = []
  for path in sorted(changing):
    with contextlib.suppress(OSError):  # replaced just now
      found.append((str(path), path.stat().st_mtime_ns, path.stat().st_size))
  return found


def describe() -> dict:
  """Time, versions, git commit, command and devices, ready for JSON."""
  return {
    "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    "git_commit": git_commit(),
    "python": platform.python_version(),
    "platform": platform.platform(),
    "packages": {"entropy_attn": __version__} | {name: metadata.version(name) for name in _PACKAGES},
    "devices": [f"{device.device_kind} ({device.platform})" for device in jax.devices()],
    "processes": jax.process_count(),
  }


def made_by(workdir: pathlib.Path) -> dict:
  """Command and commit of the last start in a run's folder, for what is made of it; less what is not known."""
  try:
    environment = files.read_json(workdir / _ENVIRONMENT) or {}
  except (OSError, ValueError):  # damaged: nothing is computed from it
    return {}
  command = [str(part) for part in environment.get("command") or []]
  known = {"command": shlex.join(command), "commit": environment.get("git_commit")}
  return {name: value for name, value in known.items() if value}


def commit_of(workdir: pathlib.Path) -> str | None:
  """The commit, as `git_commit` writes it, of the last start in a run's folder; None where it is not known."""
  return _environment(workdir).get("git_commit")


def git_commit() -> str | None:
  """The commit of this code, with '+changes' where files differ from it; None outside a git checkout.

  A checkout that an environment happens to lie in is another's: what is installed there has no commit.
  """
  root = pathlib.Path(__file__).parent
  try:
    subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=root, capture_output=True, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def first_alone(action: Callable):
  """Calls action() in the first process, while the others wait; returns its result there, None elsewhere.

  Raises:
    UserError: in all processes, where action raises it.
  """
  if jax.process_count() == 1:
    return action()
  result, refused = None, None
  if jax.process_index() == 0:
    try:
      result = action()
    except UserError as error:
      refused = error
  failed = multihost_utils.broadcast_one_to_all(np.array(refused is not None))
  if failed:
    raise refused or UserError("the first process stopped: its message says why")
  return result


def _environment(workdir: pathlib.Path) -> dict:
  """environment.json of a run's folder; empty where there is none."""
  try:
    return files.read_json(workdir / _ENVIRONMENT) or {}
  except (OSError, ValueError):  # damaged: nothing is computed from it
    return {}


def _at_step(identity: Mapping) -> str:
  return "" if identity.get("step") is None else f" of step {identity['step']}"


def _versions(environment: Mapping) -> dict:
  """What computes a run, flat, of `describe`."""
  names = ("git_commit", "python", "devices")
  return {name: environment[name] for name in names if name in environment} | dict(environment.get("packages", {}))


def _found_config(workdir: pathlib.Path) -> ConfigDict | None:
  """The config in a folder, with the fields added since; None in one that holds no run."""
  try:
    saved = files.read_json(workdir / _CONFIG)
    return None if saved is None else config_lib.completed(ConfigDict(saved))
  except (ValueError, TypeError) as error:
    raise Damaged(f"{workdir / _CONFIG} is not a run's config: {error}") from error
  except OSError as error:
    raise Damaged(f"{workdir / _CONFIG} cannot be read: {error.strerror}") from error
