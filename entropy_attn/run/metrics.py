"""A run's course: metrics.jsonl, the exact record, and the curves of it in tensorboard/; alone imports tensorboardX."""

from collections.abc import Mapping
import contextlib
import functools
import json
import math
import os
import pathlib
import time

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import api_pb2, event_pb2, plugin_hparams_pb2

from entropy_attn import progress
from entropy_attn.errors import UserError, is_disk_full
from entropy_attn.files import unfinished, write_bytes
from entropy_attn.run import charts

_NAME, _EVENTS = "metrics.jsonl", "tensorboard"


class Writer:
  """Appends one line a record to metrics.jsonl, and its curves to tensorboard/, under the names of clu's MetricWriter.

  Lines past `resume_step` are dropped first, and a damaged end, so that a resumed run leaves the file that an
  uninterrupted one would. TensorBoard hides what an earlier start wrote past that step.

  Raises:
    UserError: for a line that is no record, or where the disk is full: what was recorded before is intact.
  """

  def __init__(self, workdir: pathlib.Path, resume_step: int):
    self._path = workdir / _NAME
    self._laid_out, self._full = False, False
    with self._guarded():
      _keep_up_to(self._path, resume_step)
      self._file = self._path.open("ab", buffering=0)
      self._events = _open_events(events_folder(workdir))
      self._add(event_pb2.SessionLog(status=event_pb2.SessionLog.START), resume_step + 1)

  def write(self, kind: str, step: int, values: Mapping) -> None:
    """Records `values` (scalars, arrays, text) of `kind` (train or eval) at a step; other programs see it at once.

    Raises:
      UserError: where the disk is full.
    """
    values = to_json(values)
    with self._guarded():
      self._append((json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())
    if kind == "train" and not self._laid_out:
      self._laid_out = True
      charts_of = charts.layout(values) if "entropy_LxH" in values else {}
      of_tensorboardX = {c: {name: ["Multiline", tags] for name, tags in of.items()} for c, of in charts_of.items()}
      self._write_summary(0, summary.custom_scalars(of_tensorboardX))
    self.write_scalars(step, charts.scalars(kind, values))

  def write_scalars(self, step: int, scalars: Mapping) -> None:
    """Curves' values at a step, for TensorBoard alone; those that are not finite are left out."""
    for name, value in scalars.items():
      if math.isfinite(value):
        self._write_summary(step, summary.scalar(name, float(value)), flush=False)
    self._flush_events()

  def write_images(self, step: int, images: Mapping) -> None:
    """Images by name, uint8 or in 0 … 1, [H, W, C] or [N, H, W, C], for TensorBoard alone."""
    for name, image in images.items():
      several = np.asarray(image)
      named = {name: several} if several.ndim == 3 else {f"{name}/{i}": one for i, one in enumerate(several)}
      for tag, pixels in named.items():
        self._write_summary(step, summary.image(tag, pixels, dataformats="HWC"))

  def write_texts(self, step: int, texts: Mapping) -> None:
    """Markdown texts by name, for TensorBoard alone."""
    for name, text in texts.items():
      self._write_summary(step, summary.text(name, text))

  def write_hparams(self, hparams: Mapping) -> None:
    """What the run was asked to be, a flat mapping: its row in TensorBoard's table, beside the last of each curve.

    No list of columns is written: TensorBoard itself finds those that differ between the runs that it shows.
    """
    _, start, _ = summary.hparams({name: value for name, value in hparams.items() if value not in (None, "")}, {})
    self._write_summary(0, start)

  def write_outcome(self, success: bool) -> None:
    """How the run ended, in the same table; not for one that is to go on."""
    _, _, end = summary.hparams({}, {})
    if not success:
      plugin = end.value[0].metadata.plugin_data
      told = plugin_hparams_pb2.HParamsPluginData.FromString(plugin.content)
      told.session_end_info.status = api_pb2.STATUS_FAILURE
      plugin.content = told.SerializeToString()
    self._write_summary(0, end)

  def flush(self) -> None:
    """Sees to it that a power cut loses nothing recorded so far."""
    if self._full:  # told before: whoever saves after that is not to be stopped by the same again
      return
    with self._guarded():
      os.fsync(self._file.fileno())
    self._flush_events()

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    with contextlib.suppress(OSError):  # the record is whole: at most the curves lack their end
      self._events.close()

  def _write_summary(self, step: int, content, flush: bool = True) -> None:
    with self._guarded():
      self._add(content, step)
    if flush:
      self._flush_events()

  def _add(self, content, step: int) -> None:
    field = "session_log" if isinstance(content, event_pb2.SessionLog) else "summary"
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **{field: content}))

  def _flush_events(self) -> None:
    with self._guarded():
      self._events.flush()

  def _append(self, line: bytes) -> None:
    """The line, or nothing of it."""
    size = os.fstat(self._file.fileno()).st_size
    try:
      rest = memoryview(line)
      while rest:
        rest = rest[self._file.write(rest) :]
    except OSError:
      with contextlib.suppress(OSError):
        os.ftruncate(self._file.fileno(), size)
      raise

  @contextlib.contextmanager
  def _guarded(self):
    try:
      yield
    except OSError as error:
      if not is_disk_full(error):
        raise
      self._full = True
      raise UserError(
        f"no space left to record in {self._path}: free some and run the same command again; "
        "what was recorded before is intact"
      ) from error


def read(workdir: str | pathlib.Path, kind: str) -> list[dict]:
  """The records of a kind (train or eval) in a run's folder, by step.

  Where a resumed run repeated a step the later line wins. An end that a crash or a power cut damaged is left out, and
  told.

  Raises:
    UserError: without that file, or for a line that is no record, unless only such follow.
  """
  path = pathlib.Path(workdir, _NAME)
  if not path.is_file():
    raise UserError(f"{workdir} holds no {_NAME}: it is no run folder")
  records = {record["step"]: record for _, record in _records(path) if record["kind"] == kind}
  return [records[step] for step in sorted(records)]


def last_step(workdir: str | pathlib.Path) -> int | None:
  """The largest step recorded, of any kind; None where nothing is.

  Raises:
    UserError: as `read`, but for a missing file.
  """
  path = pathlib.Path(workdir, _NAME)
  return max((record["step"] for _, record in _records(path)), default=None) if path.is_file() else None


def has(workdir: str | pathlib.Path, kind: str, step: int) -> bool:
  """Whether a record of that kind and step is there.

  Raises:
    UserError: as `read`, but for a missing file.
  """
  path = pathlib.Path(workdir, _NAME)
  found = _records(path) if path.is_file() else []
  return any(record["kind"] == kind and record["step"] == step for _, record in found)


def set_aside(workdir: str | pathlib.Path) -> pathlib.Path | None:
  """Renames the records and their curves to the next free number (metrics.1.jsonl, tensorboard.1), for a run anew.

  Returns:
    What metrics.jsonl, or tensorboard/ without it, is called now; None where there was neither.
  """
  path, events = pathlib.Path(workdir, _NAME), events_folder(workdir)
  number = 1
  while (names := _numbered(path, events, number)) and any(name.exists() for name in names):
    number += 1
  moved = [old.rename(new) for old, new in zip((path, events), names, strict=True) if old.exists()]
  return moved[0] if moved else None


def events_folder(workdir: str | pathlib.Path) -> pathlib.Path:
  """Where TensorBoard reads a run: its curves, and its traces."""
  return pathlib.Path(workdir, _EVENTS)


def to_json(value):
  """Plain Python of nested mappings, arrays and scalars; NaN and infinities become None, as JSON has neither."""
  if isinstance(value, Mapping):
    return {name: to_json(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(item) for item in value]
  if hasattr(value, "ndim"):
    return to_json(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _records(path: pathlib.Path) -> list[tuple[bytes, dict]]:
  """(line, record) of each whole line; a damaged end is told and left out.

  Raises:
    UserError: for a line that is no record, unless only such follow: these a crash or a power cut explains.
  """
  content = path.read_bytes()
  lines = content.removesuffix(b"\n").split(b"\n") if content else []
  found, damaged, reason = [], None, None  # the number of the first line that cannot be read, and why
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
      if damaged is None:
        damaged, reason = number, error
      continue
    if damaged is not None:
      raise UserError(f"{path}:{damaged} is no line of metrics ({reason}): mend or delete it")
    if not isinstance(record, dict) or type(record.get("step")) is not int or "kind" not in record:
      raise UserError(f"{path}:{number} is no line of metrics, a JSON object with kind and step: delete it")
    found.append((line, record))
  if damaged is not None:
    size = len(content) - sum(len(line) + 1 for line, _ in found)
    _tell_dropped(path, len(lines) - len(found), size)
  return found


@functools.cache  # once a process, however often the file is read
def _tell_dropped(path: pathlib.Path, lines: int, size: int) -> None:
  progress.say(f"{path}: its end is damaged, as by a crash or a power cut: {lines} line(s), {size} bytes left out")


def _keep_up_to(path: pathlib.Path, step: int) -> None:
  """Leaves the records up to a step; the file is replaced whole, or stays as it was."""
  if not path.exists():
    return
  kept = b"".join(line + b"\n" for line, record in _records(path) if record["step"] <= step)
  if kept == path.read_bytes():
    return
  try:
    write_bytes(path, kept)
  except OSError:
    unfinished(path).unlink(missing_ok=True)
    raise


def _numbered(path: pathlib.Path, events: pathlib.Path, number: int) -> tuple[pathlib.Path, pathlib.Path]:
  return path.with_name(f"{path.stem}.{number}{path.suffix}"), events.with_name(f"{events.name}.{number}")


def _open_events(folder: pathlib.Path) -> event_file_writer.EventsWriter:
  """A new file of events. It writes when told to: the writer with a thread blocks for ever where the disk is full."""
  folder.mkdir(parents=True, exist_ok=True)
  before = sum("tfevents" in path.name for path in folder.iterdir())  # two starts within a second are two files
  return event_file_writer.EventsWriter(str(folder / "events"), filename_suffix=f".{before:03d}")
