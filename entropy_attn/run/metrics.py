"""A run's course: metrics.jsonl and TensorBoard events in its folder; the only file that imports the event writer."""

from collections.abc import Mapping
import json
import math
import pathlib

import numpy as np
from tensorboardX import SummaryWriter

from entropy_attn.errors import UserError
from entropy_attn.run.files import finish, unfinished

_NAME = "metrics.jsonl"


class Writer:
  """Appends one line a record to metrics.jsonl, and the same numbers to tensorboard/.

  Lines past `resume_step` are dropped first, so that a resumed run leaves the file that an uninterrupted one would.
  """

  def __init__(self, workdir: pathlib.Path, resume_step: int):
    path = workdir / _NAME
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resume_step] if path.exists() else []
    unfinished(path).write_text("".join(kept))
    finish(path)
    self._file = path.open("a")
    self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

  def write(self, kind: str, step: int, values: Mapping) -> None:
    """Records `values` (scalars, arrays, text) of `kind` (train or eval) at a step, and flushes."""
    values = to_json(values)
    self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
    self._file.flush()
    for name, value in values.items():
      for suffix, scalar in _scalars(value):
        self._events.add_scalar(f"{kind}/{name}{suffix}", scalar, step)
    self._events.flush()

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    self._events.close()


def read(workdir: str | pathlib.Path, kind: str) -> list[dict]:
  """The records of a kind (train or eval) in a run's folder, by step.

  Where a resumed run repeated a step the later line wins. A last line that a crash cut short is left out.

  Raises:
    UserError: without that file, or for a line that is no JSON object with kind and step.
  """
  path = pathlib.Path(workdir, _NAME)
  if not path.is_file():
    raise UserError(f"{workdir} holds no {_NAME}: it is no run folder")
  records = {}
  for number, line in enumerate(_whole_lines(path), 1):
    try:
      record = json.loads(line)
      if record["kind"] == kind:
        records[record["step"]] = record
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(f"{path}:{number} is no line of metrics: {error}") from error
  return [records[step] for step in sorted(records)]


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


def _whole_lines(path: pathlib.Path) -> list[str]:
  """The lines of a file; a last one that a crash cut short is left out."""
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _scalars(value, suffix: str = ""):
  """('/00/03', number) for each entry of nested lists; ('', number) for a number."""
  if isinstance(value, list):
    for i, item in enumerate(value):
      yield from _scalars(item, f"{suffix}/{i:02d}")
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield suffix, value
