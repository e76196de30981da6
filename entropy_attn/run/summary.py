"""summary.json, the end of a run: what its config counts to, its last evaluation, and how it went."""

from collections.abc import Mapping
import json
import pathlib

from entropy_attn.errors import UserError
from entropy_attn.run import folder
from entropy_attn.run.metrics import to_json

_NAME = "summary.json"
_OUTCOMES = ("finished", "diverged")


def summarize(counts: Mapping, reached: Mapping) -> dict:
  """A summary, ready for JSON.

  Args:
    counts: of `counts.summary`.
    reached: status (finished, diverged or evaluated), step, seconds, the last evaluation, and what else there is.
  """
  return to_json({**counts, **reached})


def write(workdir: pathlib.Path, summary: Mapping) -> None:
  """Writes a run's summary."""
  folder.write_json(workdir, _NAME, summary)


def read(workdir: pathlib.Path) -> dict | None:
  """The summary of a run that has an outcome (finished or diverged), else None.

  Raises:
    UserError: for a file that is no JSON.
  """
  path = workdir / _NAME
  if not path.is_file():
    return None
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is no JSON ({error}): delete it to have the run's end repeated") from error
  return content if content.get("status") in _OUTCOMES else None
