"""Many runs → one table and one figure.

    python -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare [--json=FILE] [--only=NAME,…]

A study file defines `get_study()`, a list of `Run`. Each run is trained by a command of its own in WORKDIR/NAME. What
has finished is not trained again, and what was interrupted goes on from its checkpoint: repeat the same command.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import threading

from absl import flags
import jax
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import checkpoint, cli, entropy, flops, summary
from entropy_attn import config as config_lib
from entropy_attn.errors import UserError, check_choice
from entropy_attn.report import figures

# How long an interrupted run may take to save, seconds.
_GRACE = 120


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study: its folder's name, a config (FILE or FILE:ARGUMENT), and overrides {"group.field": value}."""

  name: str
  config: str
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)


def load_study(path: str) -> list[Run]:
  """The runs of a study file.

  Raises:
    UserError: for a missing file or function, no runs, or names that are not distinct and fit for folders.
  """
  runs = list(_function(path, "get_study")())
  names = [run.name for run in runs]
  if not runs:
    raise UserError(f"{path}: get_study() returns no runs")
  for name in names:
    if not re.fullmatch(r"\w[\w.+-]*", name):
      raise UserError(f"{path}: the run name {name!r} is not fit for a folder: use letters, digits and _ . + -")
    if names.count(name) > 1:
      raise UserError(f"{path}: two runs are named {name!r}")
  return runs


def load_config(run: Run) -> ConfigDict:
  """The validated config of a run: what its training command will see.

  Raises:
    UserError: for a missing file, an unknown field or a value that does not fit.
  """
  file, _, argument = run.config.partition(":")
  config = _function(file, "get_config")(*([argument] if argument else []))
  fields = [f"{group}.{field}" for group, values in config.items() for field in values]
  for name, value in run.overrides.items():
    check_choice(f"run {run.name!r}: the override", name, fields)
    group, field = name.split(".")
    try:
      config[group][field] = value
    except TypeError as error:
      raise UserError(f"run {run.name!r}: the override {name}={value!r} has the wrong type") from error
  config_lib.validate(config)
  return config


def command(run: Run, folder: pathlib.Path) -> list[str]:
  """The command line that trains a run, or goes on with it."""
  overrides = [f"--config.{name}={value}" for name, value in run.overrides.items()]
  main = [sys.executable, "-m", "entropy_attn.main"]
  return [*main, f"--config={run.config}", f"--workdir={folder}", *overrides]


def train_all(runs: Sequence[Run], workdir: pathlib.Path) -> dict[str, str]:
  """Trains, one after the other, the runs that have no outcome yet.

  Returns:
    For each run whose command failed, its name and the reason. A run that diverged has not failed: it has an outcome.
  """
  failures = {}
  for number, run in enumerate(runs, 1):
    folder = workdir / run.name
    heading = f"[{number}/{len(runs)}] {run.name}"
    outcome = read_summary(folder)
    if outcome:
      print(f"{heading}: {outcome['status']} before", flush=True)
      continue
    arguments = command(run, folder)
    print(f"{heading}: {' '.join(['python', *arguments[1:]])}", flush=True)
    status, errors = execute(arguments)
    outcome = read_summary(folder)
    if status and not (outcome and outcome["status"] == "diverged"):
      failures[run.name] = _reason(status, errors)
    elif not outcome:
      failures[run.name] = "it ended without a summary.json"
    if run.name in failures:
      print(f"{heading}: failed: {failures[run.name]}", flush=True)
  return failures


def execute(arguments: Sequence[str]) -> tuple[int, str]:
  """Runs a command to its end, showing its output; returns its exit status and the end of its standard error.

  Ctrl-C (KeyboardInterrupt) asks the command to save and end, kills it if it does not within two minutes or at a second
  Ctrl-C, and is then raised again.
  """
  # A process group of its own: Ctrl-C reaches this process alone, which passes it on once.
  process = subprocess.Popen(arguments, stderr=subprocess.PIPE, bufsize=0, process_group=0)
  tail = bytearray()
  reader = threading.Thread(target=_pass_on, args=(process.stderr.fileno(), tail), daemon=True)
  reader.start()
  try:
    process.wait()
  except KeyboardInterrupt:
    process.terminate()
    try:
      process.wait(_GRACE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    raise
  finally:
    reader.join(5)  # longer only if a process that the command left behind holds the pipe
  return process.returncode, tail.decode(errors="replace")


def read_summary(folder: pathlib.Path) -> dict | None:
  """The summary of a run that has an outcome (finished or diverged), else None."""
  path = folder / "summary.json"
  if not path.is_file():
    return None
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is no JSON ({error}): delete it to have the run's end repeated") from error
  return content if content.get("status") in ("finished", "diverged") else None


def tabulate(runs: Sequence[Run], workdir: pathlib.Path, failures: Mapping[str, str]) -> dict:
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


def text_table(result: Mapping) -> str:
  """The result of `tabulate` as aligned text, with the reasons of runs that went wrong below."""
  rows = [_HEADER, *(_cells(row) for row in result["runs"])]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(_align(cell, w, i) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows]
  lines.insert(1, "  ".join("─" * width for width in widths))
  return "\n".join([*(line.rstrip() for line in lines), *_notes(result)])


def markdown_table(result: Mapping) -> str:
  """The result of `tabulate` in Markdown."""
  rows = [_HEADER, ["---" if i in _LEFT else "---:" for i in range(len(_HEADER))]]
  rows += [_cells(row) for row in result["runs"]]
  lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
  return "\n".join([*lines, "", *(f"- {note}" for note in _notes(result))]) + "\n"


def went_wrong(result: Mapping) -> list[str]:
  """Names of the runs that failed, or diverged though their config (train.on_nonfinite=stop) forbids it."""
  return [row["name"] for row in result["runs"] if row["status"] == "failed" or row["unexpected"]]


_HEADER = ["run", "architecture", "PPL", "heads by quarter of Max", "parameters", "non-finite rows", "status", "time"]
_LEFT = (0, 1, 6)


def _row(run: Run, folder: pathlib.Path, failure: str | None) -> dict:
  """One run's entry: from its summary where it has one, from its config otherwise."""
  config, outcome = load_config(run), read_summary(folder) or {}
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
    "head_shares": None,
    "entropy_LxH": outcome.get("entropy_LxH"),
    "max_entropy": outcome.get("max_entropy"),
    "nonfinite_rows": None if nonfinite is None else int(np.sum(nonfinite)),
    "parameters": flops.parameter_count(config.model),
    "step": outcome.get("step"),
    "seconds": outcome.get("seconds"),
  }


def _cells(row: Mapping) -> list[str]:
  none = "–"
  return [
    row["name"],
    row["architecture"],
    none if row["perplexity"] is None else f"{row['perplexity']:.2f}",
    none if row["head_shares"] is None else summary.percent(row["head_shares"]),
    f"{row['parameters']:,}",
    none if row["nonfinite_rows"] is None else f"{row['nonfinite_rows']:,}",
    row["status"],
    none if row["seconds"] is None else _duration(row["seconds"]),
  ]


def _notes(result: Mapping) -> list[str]:
  notes = []
  if result["max_entropy"] is not None:
    notes.append(f"Max = {result['max_entropy']:.2f} nats for all runs.")
  return notes + [f"{row['name']} {row['status']}: {row['reason']}" for row in result["runs"] if row["reason"]]


def _align(cell: str, width: int, column: int) -> str:
  return cell.ljust(width) if column in _LEFT else cell.rjust(width)


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _pass_on(descriptor: int, tail: bytearray) -> None:
  """Copies what a command writes to standard error, progress bars as they are, and keeps the end of it."""
  while chunk := os.read(descriptor, 65536):
    sys.stderr.write(chunk.decode(errors="replace"))
    sys.stderr.flush()
    tail += chunk
    del tail[:-8192]


def _reason(status: int, errors: str) -> str:
  """Why a command failed: the signal that killed it, its last line "error: …", or whatever it wrote last."""
  if status < 0:
    return f"killed by {signal.Signals(-status).name}"
  lines = [line.strip() for line in re.split(r"[\r\n]", errors) if line.strip()]
  named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
  return (named or lines or [f"exit status {status}, without a message"])[-1]


def _function(path: str, name: str):
  """The function `name` of a Python file."""
  if not pathlib.Path(path).is_file():
    raise UserError(f"{path} does not exist (paths are relative to the working directory, {pathlib.Path.cwd()})")
  content = runpy.run_path(path)
  if name not in content:
    raise UserError(f"{path} defines no {name}()")
  return content[name]


def _write(result: Mapping, workdir: pathlib.Path) -> list[str]:
  """Writes the table, and the figure where there is something to draw; returns the files' names."""
  workdir.mkdir(parents=True, exist_ok=True)
  cli.write_json(str(workdir / "table.json"), result)
  (workdir / "table.md").write_text(markdown_table(result))
  measured = [row for row in result["runs"] if row["head_shares"] is not None]
  if not measured:
    return ["table.json", "table.md"]
  figures.comparison(measured, result["max_entropy"]).savefig(workdir / "comparison.png")
  return ["table.json", "table.md", "comparison.png"]


def _chosen(runs: Sequence[Run], only: Iterable[str]) -> list[Run]:
  names = [run.name for run in runs]
  for name in only:
    check_choice("--only", name, names)
  return [run for run in runs if not only or run.name in only]


def main(study: str | None, workdir: str | None, only: Sequence[str], json_path: str | None) -> int:
  """Trains what is missing, writes and prints the table; returns the exit status."""
  if not study or not workdir:
    raise UserError("--study=FILE and --workdir=DIR are both needed; configs/studies/ holds studies ready to use")
  folder = pathlib.Path(workdir)
  runs = load_study(study)
  chosen = _chosen(runs, only)
  for run in runs:  # before the first hour of training, not after it
    checkpoint.check_same_run(folder / run.name, load_config(run))
  try:
    failures = train_all(chosen, folder)
  except KeyboardInterrupt:
    print("interrupted: the same command goes on from here", file=sys.stderr)
    return 130
  result = tabulate(runs, folder, failures)
  written = _write(result, folder)
  cli.write_json(json_path, result)
  print(f"\n{text_table(result)}\n\n{folder}/: {', '.join(written)}")
  return 1 if went_wrong(result) else 0


if __name__ == "__main__":
  study_path = flags.DEFINE_string("study", None, "A file that defines get_study(), as under configs/studies/.")
  workdir_path = flags.DEFINE_string("workdir", None, "The folder of the runs, one folder each, and of the table.")
  only_names = flags.DEFINE_list("only", [], "Train these runs only; the table shows what the others have.")
  json_file = flags.DEFINE_string("json", None, "Also write the table to this file.")

  def guarded():
    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
    for number in (signal.SIGTERM, signal.SIGHUP):
      if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: so do we
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(study_path.value, workdir_path.value, only_names.value, json_file.value))

  cli.run(guarded)
