"""Where a run's figures go: metrics.jsonl and TensorBoard events in its folder."""

from collections.abc import Mapping
import json
import math
import pathlib

import numpy as np
from tensorboardX import SummaryWriter


class Writer:
  """Appends one line a record to metrics.jsonl, and the same figures to tensorboard/.

  Lines past `resume_step` are dropped first, so that a resumed run leaves the file that an uninterrupted one would.
  """

  def __init__(self, workdir: pathlib.Path, resume_step: int):
    path = workdir / "metrics.jsonl"
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= resume_step]
    path.write_text("".join(kept))
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


def _lines(path: pathlib.Path) -> list[str]:
  """Whole lines of a file; a last line that a crash cut short is left out."""
  if not path.exists():
    return []
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _scalars(value, suffix: str = ""):
  """('/00/03', number) for each entry of nested lists; ('', number) for a number."""
  if isinstance(value, list):
    for i, item in enumerate(value):
      yield from _scalars(item, f"{suffix}/{i:02d}")
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield suffix, value
