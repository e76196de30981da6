"""Checkpoints of a run: state, data position and config; the only file that imports Orbax and its TensorStore."""

import contextlib
import errno
import json
import pathlib
import re
import shutil
import tempfile

from etils import epath
import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import orbax.checkpoint as ocp
import tensorstore

from entropy_attn.errors import UserError, is_disk_full
from entropy_attn.progress import say

_FOLDER = "checkpoints"
# Faults of the machine, at which a checkpoint is not judged: some libraries say them in the text alone.
_ENVIRONMENT = (
  errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT,
)  # fmt: skip
_ENVIRONMENT_TEXT = re.compile("PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|Too many open files")


class Checkpoints:
  """The checkpoints under a run's folder, written asynchronously."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict):
    self._directory = workdir / _FOLDER
    self._config = config
    self._directory.mkdir(exist_ok=True)
    self._alias = contextlib.ExitStack()
    self._manager = self._open(self._alias.enter_context(_plain(self._directory)))

  def _open(self, directory: pathlib.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=self._config.train.keep_checkpoints, create=True)
    return ocp.CheckpointManager(epath.Path(directory), options=options)

  def save(self, step: int, state, data_position) -> None:
    """Starts to save; returns as soon as the state is copied from the devices.

    Raises:
      UserError: where the disk is full; the checkpoints before stay as they were.
    """
    if step in self._manager.all_steps():
      return
    needed, free = _size(state), shutil.disk_usage(self._directory).free
    if free < needed:  # Orbax would find out, in tracebacks from its threads
      raise UserError(
        f"no space left for a checkpoint under {self._directory}: it needs {needed / 2**20:.0f} MiB and "
        f"{free / 2**20:.0f} MiB are free: free some and run the same command again; what was saved before is intact"
      )
    items = {
      "state": ocp.args.StandardSave(state),
      "data": ocp.args.JsonSave(data_position),
      "config": ocp.args.JsonSave(json.loads(self._config.to_json())),
    }
    self._guard(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))

  def restore_latest(self, abstract_state):
    """(state, data position) of the newest readable checkpoint, or None where none was ever saved.

    Newer ones that cannot be read are moved aside to checkpoints_unreadable/, once an older one shows that the fault
    is theirs.

    Raises:
      UserError: if checkpoints were saved and none can be read; nothing was moved then.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    wanted = {"state": ocp.args.StandardRestore(abstract_state), "data": ocp.args.JsonRestore()}
    reasons = {}
    for step in steps:
      try:
        restored = _restore(self._manager, step, **wanted)
      except _Unreadable as error:
        reasons[step] = str(error)
        continue
      for damaged, reason in reasons.items():
        say(f"checkpoint {damaged} cannot be read ({reason}): moved to {self._aside()}; going on from step {step}")
        self._move_aside(damaged)
      return restored.state, restored.data
    if reasons:
      raise UserError(_none_readable(self._directory, reasons))
    if self._aside().exists():
      raise UserError(
        f"the checkpoints of {self._directory} were unreadable and lie in {self._aside()}: restore one of them, or "
        "choose another --workdir"
      )
    return None

  def reached_preemption(self, step: int) -> bool:
    """True once the platform announced a preemption that all processes agree upon."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits for what is being written."""
    try:
      self._guard(self._manager.wait_until_finished)
      self._guard(self._manager.close)
    finally:
      self._alias.close()

  def _guard(self, action) -> None:
    try:
      action()
    except Exception as error:
      if not (is_disk_full(error) or _is_of_the_machine(error)):
        raise
      fault = "no space left: free some" if is_disk_full(error) else f"{_reason(error)}: mend that"
      raise UserError(
        f"a checkpoint under {self._directory} cannot be written, {fault} and run the same command again; what was "
        "saved before is intact"
      ) from error

  def _aside(self) -> pathlib.Path:
    return self._directory.with_name(f"{_FOLDER}_unreadable")

  def _move_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      self._aside().mkdir(exist_ok=True)
      target = self._aside() / str(step)
      if target.exists():  # it was damaged once before
        target = target.with_name(f"{step}.{len(list(self._aside().iterdir()))}")
      shutil.move(self._directory / str(step), target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("moved an unreadable checkpoint aside")
    directory = pathlib.Path(self._manager.directory)
    self._manager.close()
    self._manager = self._open(directory)


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
  with _plain(directory) as plain, ocp.CheckpointManager(epath.Path(plain)) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    if step is not None:
      if step not in steps:
        raise UserError(f"no checkpoint of step {step} under {directory}; there are {', '.join(map(str, steps))}")
      steps = [step]
    reasons = {}
    for candidate in steps:
      try:
        restored = _restore(manager, candidate, state=restore)
      except _Unreadable as error:
        reasons[candidate] = str(error)
        continue
      for damaged, reason in reasons.items():
        say(f"checkpoint {damaged} cannot be read ({reason}): step {candidate} is taken in its place")
      return {"params": restored.state["params"]["model"], **restored.state["model_state"]}, candidate
  raise UserError(_none_readable(directory, reasons) if reasons else f"no checkpoint was saved under {directory} yet")


def any_saved(workdir: pathlib.Path) -> bool:
  """Whether a run's folder holds a checkpoint, readable or not: whether the run will be resumed."""
  return any(path.name.isdigit() for path in (workdir / _FOLDER).glob("*"))


def check_space(workdir: pathlib.Path, state, kept: int) -> None:
  """Raises UserError if the folder's disk cannot hold the checkpoints to come."""
  size = _size(state)
  free = shutil.disk_usage(workdir).free
  needed = (kept + 1) * size
  if free < needed:
    raise UserError(
      f"no space left under {workdir}: {kept + 1} checkpoints need {needed / 2**20:.0f} MiB and "
      f"{free / 2**20:.0f} MiB are free; free some, choose another --workdir, or lower train.keep_checkpoints"
    )


def _size(state) -> int:
  """Bytes of a state's arrays."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class _Unreadable(Exception):
  """A checkpoint cannot be read; its text is the reason."""


def _restore(manager: ocp.CheckpointManager, step: int, **items):
  """The items of a checkpoint.

  Raises:
    _Unreadable: where it may be damaged.
    UserError: where the machine is at fault.
  """
  try:
    _read_through(pathlib.Path(manager.directory) / str(step) / "state")
    return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # Orbax and TensorStore raise many kinds for a truncated file
    reason = _reason(error)
    if _is_of_the_machine(error):
      raise UserError(
        f"checkpoint {step} cannot be read now ({reason}): mend that and run the same "
        "command again; nothing was changed"
      ) from error
    raise _Unreadable(reason) from error


def _reason(error: Exception) -> str:
  return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"


def _is_of_the_machine(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _ENVIRONMENT:
      return True
    if _ENVIRONMENT_TEXT.search(str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False


def _none_readable(directory: pathlib.Path, reasons: dict[int, str]) -> str:
  step, reason = next(iter(reasons.items()))
  return (
    f"none of the {len(reasons)} checkpoints under {directory} can be read (step {step}: {reason}): restore one from a "
    "copy, or choose another --workdir; nothing was changed"
  )


def _read_through(folder: pathlib.Path) -> None:
  """Reads every byte of a saved state once.

  Orbax reads all arrays at a time, and where one fails, the others' reads end in tracebacks from its threads.
  """
  base = {"driver": "file", "path": f"{folder}/"}  # not as a URI, in which a # or a ? ends the path
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
  for key in store.list().result():
    store.read(key).result()


@contextlib.contextmanager
def _plain(directory: pathlib.Path):
  """The folder's path; through a link where it has characters that Orbax takes for patterns or addresses."""
  resolved = directory.resolve()
  if not re.search(r"[\[\]*?\\:]", str(resolved)):
    yield resolved
    return
  with tempfile.TemporaryDirectory(prefix="entropy_attn-") as folder:
    link = pathlib.Path(folder, "run")
    link.symlink_to(resolved, target_is_directory=True)
    yield link
