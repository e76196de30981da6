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

from entropy_attn.errors import UserError, is_disk_full

_FOLDER = "checkpoints"


class Checkpoints:
  """The checkpoints under a run's folder, written asynchronously."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict):
    self._directory = workdir / _FOLDER
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
      restored = _try_restore(
        self._manager, step, state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()
      )
      if restored is not None:
        return restored.state, restored.data
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
      aside = self._directory.with_name(f"{_FOLDER}_unreadable")
      aside.mkdir(exist_ok=True)
      target = aside / str(step)
      shutil.rmtree(target, ignore_errors=True)
      shutil.move(self._directory / str(step), target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("moved an unreadable checkpoint aside")
    self._manager.close()
    self._manager = self._open()


def restore_variables(workdir: pathlib.Path, abstract_state, step: int | None = None) -> tuple[dict, int]:
  """(variables, step): what the model's apply takes, of a run's newest readable checkpoint or of `step`.

  The optimizer's part of the state is not read.

  Args:
    workdir: the run's folder.
    abstract_state: a TrainState of shapes, dtypes and shardings.
    step: which checkpoint; None: the newest that can be read.

  Raises:
    UserError: without a readable checkpoint, or one of that step.
  """
  directory = workdir / _FOLDER
  if not directory.is_dir():
    raise UserError(f"no checkpoint under {directory}: train first, or correct the folder's name")
  wanted = {"params": {"model": abstract_state.params["model"]}, "model_state": abstract_state.model_state}
  restore = ocp.args.PyTreeRestore(
    wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
  )
  with ocp.CheckpointManager(epath.Path(directory.resolve())) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    if step is not None:
      if step not in steps:
        raise UserError(f"no checkpoint of step {step} under {directory}; there are {', '.join(map(str, steps))}")
      steps = [step]
    for candidate in steps:
      restored = _try_restore(manager, candidate, state=restore)
      if restored is not None:
        return {"params": restored.state["params"]["model"], **restored.state["model_state"]}, candidate
  raise UserError(f"no checkpoint of {directory} can be read")


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


def _try_restore(manager: ocp.CheckpointManager, step: int, **items):
  """The items of a checkpoint, or None with a warning where it is damaged."""
  try:
    _read_through(manager.directory / str(step) / "state")
    return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # Orbax and TensorStore raise many kinds for a truncated file
    reason = (str(error).strip().splitlines() or [""])[0]
    kind = type(error).__name__
    logging.warning("checkpoint %s cannot be read (%s: %.200s): trying the one before it", step, kind, reason)
    return None


def _read_through(folder) -> None:
  """Reads every byte of a saved state once.

  Orbax reads all arrays at a time, and where one fails, the others' reads end in tracebacks from its threads.
  """
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
  for key in store.list().result():
    store.read(key).result()
