"""What came out of a study: one row a run, head shares against one Max for all."""

from collections.abc import Mapping, Sequence
import pathlib

import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import counts, entropy, files
from entropy_attn.report import figures, tables
from entropy_attn.run import folder, summary
from entropy_attn.study.runs import Run, load_config

_HEAD = (
  "run",
  "architecture",
  "PPL",
  "bits/byte",
  "heads by quarter of Max",
  "parameters",
  "non-finite rows",
  "status",
  "time",
)
_LEFT = (0, 1, 7)


def collect(runs: Sequence[Run], workdir: pathlib.Path, failures: Mapping[str, str]) -> dict:
  """What a study found, ready for JSON: {"max_entropy": nats, "runs": [one mapping a run]}.

  Head shares are those of each run's last evaluation with one Max for all runs: the largest that any of them used.
  """
  rows = [_row(run, workdir / run.name, failures.get(run.name)) for run in runs]
  largest = max((row["max_entropy"] for row in rows if row["max_entropy"] is not None), default=None)
  for row in rows:
    del row["max_entropy"]
    if row["entropy_LxH"] is None:
      continue
    shares = entropy.head_shares(np.asarray(row["entropy_LxH"], np.float32), largest)
    row["head_shares"] = [round(float(share), 6) for share in shares]
  return {"max_entropy": largest, "runs": rows}


def text(result: Mapping) -> str:
  """The result of `collect` for a terminal, with the reasons of runs that went wrong below."""
  return "\n".join([tables.text(_HEAD, _rows(result), left=_LEFT), *_notes(result)])


def markdown(result: Mapping) -> str:
  """The result of `collect` in Markdown."""
  lines = [tables.markdown(_HEAD, _rows(result), left=_LEFT), "", *(f"- {note}" for note in _notes(result))]
  return "\n".join(lines) + "\n"


def write(result: Mapping, workdir: pathlib.Path) -> list[str]:
  """Writes the table, and the figure where there is something to draw; returns the files' names."""
  files.write_json(workdir / "table.json", result)
  files.write_bytes(workdir / "table.md", markdown(result).encode())
  measured = [row for row in result["runs"] if row["head_shares"] is not None]
  if not measured:
    return ["table.json", "table.md"]
  folder.write_figures(workdir, {"comparison": figures.comparison(measured, result["max_entropy"])})
  return ["table.json", "table.md", "comparison.png"]


def went_wrong(result: Mapping) -> list[str]:
  """Names of the runs that failed, or diverged though their config (train.on_nonfinite=stop) forbids it."""
  return [row["name"] for row in result["runs"] if row["status"] == "failed" or row["unexpected"]]


def _row(run: Run, workdir: pathlib.Path, failure: str | None) -> dict:
  """One run's entry: from its summary where it has one, from its config otherwise."""
  config, outcome = load_config(run), summary.read(workdir) or {}
  status = "failed" if failure else outcome.get("status", "not trained")
  divergence = outcome.get("divergence") or {}
  nonfinite = outcome.get("nonfinite_rows_L")
  return {
    "name": run.name,
    "config": run.config,
    "overrides": dict(run.overrides),
    "architecture": config_lib.architecture_name(config),
    "status": status,
    "reason": failure or divergence.get("text"),
    "unexpected": status == "diverged" and config.train.on_nonfinite == "stop",
    "loss": outcome.get("loss"),
    "perplexity": outcome.get("perplexity"),
    "bits_per_byte": outcome.get("bits_per_byte"),
    "head_shares": None,
    "entropy_LxH": outcome.get("entropy_LxH"),
    "max_entropy": outcome.get("max_entropy"),
    "nonfinite_rows": None if nonfinite is None else int(np.sum(nonfinite)),
    "parameters": counts.parameter_count(config.model),
    "step": outcome.get("step"),
    "seconds": outcome.get("seconds"),
  }


def _rows(result: Mapping) -> list[list[str]]:
  return [_cells(row) for row in result["runs"]]


def _cells(row: Mapping) -> list[str]:
  none = tables.NONE
  return [
    row["name"],
    row["architecture"],
    none if row["perplexity"] is None else f"{row['perplexity']:.2f}",
    none if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}",
    none if row["head_shares"] is None else tables.percent(row["head_shares"]),
    f"{row['parameters']:,}",
    none if row["nonfinite_rows"] is None else f"{row['nonfinite_rows']:,}",
    row["status"],
    none if row["seconds"] is None else tables.duration(row["seconds"]),
  ]


def _notes(result: Mapping) -> list[str]:
  notes = []
  if result["max_entropy"] is not None:
    notes.append(f"Max = {result['max_entropy']:.2f} nats for all runs.")
  return notes + [f"{row['name']} {row['status']}: {row['reason']}" for row in result["runs"] if row["reason"]]
