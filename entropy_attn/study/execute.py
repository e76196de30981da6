"""How a study trains: each run by a command of its own, one after the other, each resumed where it was interrupted."""

import codecs
from collections.abc import Sequence
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

from entropy_attn import progress
from entropy_attn.run import summary
from entropy_attn.study.runs import Run, command

GRACE = 120  # seconds that an interrupted run may take to save


def train_all(runs: Sequence[Run], workdir: pathlib.Path) -> dict[str, str]:
  """Trains, one after the other, the runs that have no outcome yet.

  Returns:
    For each run whose command failed, its name and the reason. A run that diverged has not failed: it has an outcome.
  """
  failures = {}
  for number, run in enumerate(runs, 1):
    folder = workdir / run.name
    heading = f"[{number}/{len(runs)}] {run.name}"
    outcome = summary.read(folder)
    if outcome:
      print(f"{heading}: {outcome['status']} before", flush=True)
      continue
    arguments = command(run, folder)
    print(f"{heading}: {' '.join(['python', *arguments[1:]])}", flush=True)
    status, errors = execute(arguments)
    outcome = summary.read(folder)
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
  environment = os.environ | progress.environment()
  process = subprocess.Popen(arguments, stderr=subprocess.PIPE, bufsize=0, process_group=0, env=environment)
  tail = bytearray()
  reader = threading.Thread(target=_pass_on, args=(process.stderr.fileno(), tail), daemon=True)
  reader.start()
  try:
    process.wait()
  except KeyboardInterrupt:
    try:  # the second Ctrl-C may come at once
      process.terminate()
      process.wait(GRACE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    raise
  finally:
    reader.join(5)  # longer only if a process that the command left behind holds the pipe
  return process.returncode, tail.decode(_encoding(), errors="replace")


def _pass_on(descriptor: int, tail: bytearray) -> None:
  """Copies what a command writes to standard error, progress bars as they are, and keeps the end of it."""
  decoder = codecs.getincrementaldecoder(_encoding())("replace")  # a read may end within a letter
  while chunk := os.read(descriptor, 65536):
    progress.pass_on(decoder.decode(chunk))
    tail += chunk
    del tail[:-8192]


def _encoding() -> str:
  """That of standard error, which a command of ours takes over from this one."""
  return getattr(sys.stderr, "encoding", None) or "utf-8"


def _reason(status: int, errors: str) -> str:
  """Why a command failed: the signal that killed it, its last line "error: …", or whatever it wrote last."""
  if status < 0:
    return f"killed by {signal.Signals(-status).name}"
  lines = [line.strip() for line in re.split(r"[\r\n]", errors) if line.strip()]
  named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
  return (named or lines or [f"exit status {status}, without a message"])[-1]
