"""summary.json, the end of a run: what its config counts to, its last evaluation, and how it went."""

from collections.abc import Mapping
import pathlib

from entropy_attn import files
from entropy_attn.progress import say
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
  files.write_json(workdir / _NAME, summary)


def read(workdir: pathlib.Path) -> dict | None:
  """The summary of a run that has an outcome (finished or diverged), else None.

  A damaged one counts as none, which is told: the run's end is then repeated, from its last checkpoint.
  """
  path = workdir / _NAME
  try:
    content = files.read_json(path) or {}
  except (OSError, ValueError) as error:
    say(f"{path} is damaged ({error}): the run's end will be repeated by its command")
    return None
  return content if content.get("status") in _OUTCOMES else None
