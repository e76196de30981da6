"""Checkpoints of a run: state, data position and config; the only file that imports Orbax and its TensorStore."""

import json
import pathlib
import shutil

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import orbax.checkpoint as ocp
import tensorstore

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError, is_disk_full

# Fields that may change between two starts of a run: none of them alters what is computed.
_FREE = (
    "mesh.", "eval.", "data.data_dir", "model.attention", "model.remat",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.on_nonfinite",
)  # fmt: skip
# Fields of the model that may change when a checkpoint is only evaluated.
_FREE_IN_EVALUATION = (
    "model.context_length", "model.dtype", "model.attention", "model.remat", "model.embedding_dropout",
)  # fmt: skip


class Checkpoints:
  """The checkpoints under a run's folder, written asynchronously."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict):
    self._directory = workdir / "checkpoints"
    self._config = config
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=self._config.train.keep_checkpoints, create=True)
    return ocp.CheckpointManager(epath.Path(self._directory.resolve()), options=options)

  def save(self, step: int, state, data_position) -> None:
    """Starts to save; returns as soon as the state is copied from the devices.

    Raises:
      UserError: where the disk is full; the checkpoints before stay as they were.
    """
    if step in self._manager.all_steps():
      return
    items = {
      "state": ocp.args.StandardSave(state),
      "data": ocp.args.JsonSave(data_position),
      "config": ocp.args.JsonSave(json.loads(self._config.to_json())),
    }
    self._guard(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))

  def restore_latest(self, abstract_state):
    """(state, data position) of the newest readable checkpoint, or None where there is none.

    An unreadable one is moved aside to checkpoints_unreadable/, with a warning.

    Raises:
      UserError: if every checkpoint is unreadable.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      restored = _try_restore(self._manager, step, abstract_state)
      if restored is not None:
        return restored
      self._move_aside(step)
    if steps:
      raise UserError(f"no checkpoint of {self._directory} can be read; see {self._directory}_unreadable")
    return None

  def reached_preemption(self, step: int) -> bool:
    """True once the platform announced a preemption that all processes agree upon."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits for what is being written."""
    self._guard(self._manager.wait_until_finished)
    self._manager.close()

  def _guard(self, action) -> None:
    try:
      action()
    except Exception as error:
      if not is_disk_full(error):
        raise
      raise UserError(
        f"no space left to write a checkpoint under {self._directory}: free some and run the same command again; "
        f"what was saved before is intact"
      ) from error

  def _move_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      aside = self._directory.with_name("checkpoints_unreadable")
      aside.mkdir(exist_ok=True)
      target = aside / str(step)
      shutil.rmtree(target, ignore_errors=True)
      shutil.move(self._directory / str(step), target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("moved an unreadable checkpoint aside")
    self._manager.close()
    self._manager = self._open()


def restore_for_evaluation(workdir: pathlib.Path, abstract_state, step: int | None = None):
  """(state, step) of a run's newest readable checkpoint, or of `step`.

  Args:
    workdir: the run's folder.
    abstract_state: its shapes, dtypes and shardings.
    step: which checkpoint; None: the newest that can be read.

  Raises:
    UserError: without a readable checkpoint, or one of that step.
  """
  directory = workdir / "checkpoints"
  if not directory.is_dir():
    raise UserError(f"no checkpoint under {directory}: train first, or correct --workdir")
  with ocp.CheckpointManager(epath.Path(directory.resolve())) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    if step is not None:
      if step not in steps:
        raise UserError(f"no checkpoint of step {step} under {directory}; there are {', '.join(map(str, steps))}")
      steps = [step]
    for candidate in steps:
      restored = _try_restore(manager, candidate, abstract_state)
      if restored is not None:
        return restored[0], candidate
  raise UserError(f"no checkpoint of {directory} can be read")


def read_config(workdir: pathlib.Path) -> ConfigDict | None:
  """The config that a run folder was made with, or None for a new folder."""
  path = workdir / "config.json"
  if not path.exists():
    return None
  try:
    return ConfigDict(json.loads(path.read_text()))
  except ValueError as error:
    raise UserError(f"{path} is not a run's config: {error}") from error


def check_same_run(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Raises UserError, naming the differing fields, if the folder holds a run of another config."""
  saved = read_config(workdir)
  different = [line for line in config_lib.differences(saved, config) if not line.startswith(_FREE)] if saved else []
  if different:
    raise UserError(f"{workdir} holds a run of another config ({'; '.join(different)}): choose another --workdir")


def check_same_model(workdir: pathlib.Path, config: ConfigDict) -> ConfigDict:
  """The saved config of a run, after checking that `config` describes the same model.

  Raises:
    UserError: if the folder holds no run, another architecture, or one with fewer positions than are asked for.
  """
  saved = read_config(workdir)
  if saved is None:
    raise UserError(f"{workdir} holds no run (no config.json): train first, or correct --workdir")
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


def check_space(workdir: pathlib.Path, state, kept: int) -> None:
  """Raises UserError if the folder's disk cannot hold the checkpoints to come."""
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  free = shutil.disk_usage(workdir).free
  needed = (kept + 1) * size
  if free < needed:
    raise UserError(
      f"no space left under {workdir}: {kept + 1} checkpoints need {needed / 2**20:.0f} MiB and "
      f"{free / 2**20:.0f} MiB are free; free some, choose another --workdir, or lower train.keep_checkpoints"
    )


def _try_restore(manager: ocp.CheckpointManager, step: int, abstract_state):
  """(state, data position), or None with a warning where the checkpoint is damaged."""
  items = {"state": ocp.args.StandardRestore(abstract_state), "data": ocp.args.JsonRestore()}
  try:
    _read_through(manager.directory / str(step) / "state")
    restored = manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # Orbax and TensorStore raise many kinds for a truncated file
    reason = (str(error).strip().splitlines() or [""])[0]
    kind = type(error).__name__
    logging.warning("checkpoint %s cannot be read (%s: %.200s): trying the one before it", step, kind, reason)
    return None
  return restored.state, restored.data


def _read_through(folder) -> None:
  """Reads every byte of a saved state once.

  Orbax reads all arrays at a time, and where one fails, the others' reads end in tracebacks from its threads.
  """
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
  for key in store.list().result():
    store.read(key).result()
