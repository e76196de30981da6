"""How a study trains: each job by a command of its own, some side by side, each resumed where it was interrupted."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

from entropy_attn import progress
from entropy_attn.errors import UserError
from entropy_attn.report import tables
from entropy_attn.run import folder, metrics, summary
from entropy_attn.study import child
from entropy_attn.study.runs import Job, command

GRACE = 120  # seconds that interrupted runs may take to save
_POLL = 0.2  # seconds between two looks at the commands
_LOOK = 5.0  # seconds between two looks at how far they are
_TAIL = 8192  # bytes of a log's end in which an error is looked for
_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def train_all(
  jobs: Sequence[Job],
  workdir: pathlib.Path,
  *,
  side_by_side: int = 1,
  steps: Mapping[str, int] | None = None,
  on_finish: Callable[[Mapping[str, str]], None] = lambda failures: None,
) -> dict[str, str]:
  """Trains the jobs that have no outcome yet.

  What a command writes goes to WORKDIR/NAME/seedN.log; on standard error stand one bar for all and a line a finished
  job. Ctrl-C (KeyboardInterrupt) asks the commands to save and end, kills them if they do not within two minutes or at
  a second Ctrl-C, and is then raised again.

  Args:
    jobs: those that others come after, before them.
    side_by_side: how many train at a time; CPUs and a GPU's memory are divided among them.
    steps: train.steps of each, by name, for the bar.
    on_finish: called with the failures so far after each job that ended.

  Returns:
    For each job whose command failed, its name and the reason. One that diverged has not failed: it has an outcome.
  """
  done = [job for job in jobs if summary.read(workdir / job.name)]
  if done:
    progress.say(f"{len(done)} of {len(jobs)} runs have an outcome from before")
  waiting = [job for job in jobs if job not in done]
  with progress.bar(total=len(jobs), start=len(done), what="study", unit="run") as bar:
    crew = _Crew(workdir, side_by_side, steps or {}, bar)
    try:
      while waiting or crew.running:
        for job in _ended(crew, waiting):
          bar.update(1)
          progress.say(f"[{bar.n}/{len(jobs)}] {job.name}: {_outcome(job, workdir, crew.failures)}")
          on_finish(crew.failures)
        crew.look()
        time.sleep(_POLL)
    except BaseException:  # Ctrl-C, or a fault of this process: none is left running without it
      crew.stop()
      raise
  return crew.failures


@dataclasses.dataclass
class _Running:
  job: Job
  process: subprocess.Popen
  log: pathlib.Path
  begun: int  # bytes of the log before it
  slot: int  # which part of the CPUs it has


class _Crew:
  """The commands that run at a time."""

  def __init__(self, workdir: pathlib.Path, size: int, steps: Mapping[str, int], bar):
    self.running: list[_Running] = []
    self.failures: dict[str, str] = {}
    self.workdir, self._steps, self._bar = workdir, steps, bar
    self._free = list(range(size))[::-1]
    self._cpus, self._looked, self._told = shares_of_cpus(size), 0.0, set()
    self._environment = dict(os.environ)
    if size > 1:  # each would else take three quarters of a GPU's memory
      self._environment.setdefault(_MEMORY, f"{0.9 / size:.3f}")

  def has_room(self) -> bool:
    return bool(self._free)

  def is_used_by_another(self, job: Job) -> bool:
    """Whether another process trains it, such as one that a killed study left behind to save."""
    try:
      with folder.opened(self.workdir / job.name):
        return False
    except folder.Busy as error:
      if job.name not in self._told:
        progress.say(f"waiting: {error}")
      self._told.add(job.name)
      return True
    except UserError:  # its command will say the same, and fail
      return False

  def start(self, job: Job) -> None:
    """Starts a job's command in a process group of its own: Ctrl-C reaches this process alone."""
    arguments, slot = command(job, self.workdir), self._free.pop()
    log = self.workdir / f"{job.name}.log"
    with log.open("ab") as out:
      out.write(f"$ {shlex.join(arguments)}\n".encode())
      out.flush()
      begun = out.tell()
      process = subprocess.Popen(
        [sys.executable, child.__file__, str(os.getpid()), self._cpus[slot], *arguments],
        stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0, env=self._environment,
      )  # fmt: skip
    self.running.append(_Running(job, process, log, begun, slot))

  def reap(self) -> list[Job]:
    """The jobs whose command has ended since."""
    ended = [running for running in self.running if running.process.poll() is not None]
    for running in ended:
      self.running.remove(running)
      self._free.append(running.slot)
      status, outcome = running.process.returncode, summary.read(self.workdir / running.job.name)
      if status and not (outcome and outcome["status"] == "diverged"):
        self.failures[running.job.name] = f"{_reason(status, running)} ({running.log})"
      elif not outcome:
        self.failures[running.job.name] = f"it ended without a summary ({running.log})"
    return [running.job for running in ended]

  def look(self) -> None:
    """Has the bar say how far the running ones are."""
    if time.monotonic() - self._looked < _LOOK:
      return
    self._looked = time.monotonic()
    parts = []
    for running in self.running:
      with contextlib.suppress(UserError, OSError):  # damaged: the command itself will say so
        step = metrics.last_step(self.workdir / running.job.name) or 0
        parts.append(f"{running.job.name} at step {step:,} of {self._steps.get(running.job.name, 0):,}")
    self._bar.set_postfix_str(", ".join(parts), refresh=False)
    self._bar.refresh()  # not update(0), from which tqdm would count the time of the next run

  def stop(self) -> None:
    """Asks all to save, and waits; kills what has not ended in time, or at a second Ctrl-C."""
    try:  # the second Ctrl-C may come at once
      if self.running:
        progress.say(f"asking {len(self.running)} runs to save; Ctrl-C again kills them")
      for running in self.running:
        running.process.terminate()
      end = time.monotonic() + GRACE
      for running in self.running:
        running.process.wait(max(0.0, end - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
      for running in self.running:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()


def _ended(crew: _Crew, waiting: list[Job]) -> list[Job]:
  """The jobs that came to an end since; starts what there is room for, and takes it from `waiting`."""
  ended = crew.reap()
  for job in list(waiting):
    unfinished = [*waiting, *(running.job for running in crew.running)]
    if any(other in unfinished for other in job.after):
      continue
    if lost := [other.name for other in job.after if not _finished(other, crew)]:
      crew.failures[job.name] = f"it needs {lost[0]}, which has not finished"
      ended.append(job)
    elif summary.read(crew.workdir / job.name):  # another process trained it meanwhile
      ended.append(job)
    elif not crew.has_room() or crew.is_used_by_another(job):
      continue
    else:
      crew.start(job)
    waiting.remove(job)
  return ended


def _finished(job: Job, crew: _Crew) -> bool:
  outcome = summary.read(crew.workdir / job.name)
  return job.name not in crew.failures and bool(outcome) and outcome["status"] == "finished"


def shares_of_cpus(count: int) -> list[str]:
  """The CPUs that this process may use, dealt to so many commands, as `child` reads them; '' leaves one all of them."""
  cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  if count == 1 or len(cpus) < count:
    return [""] * count
  bounds = [len(cpus) * i // count for i in range(count + 1)]
  return [",".join(map(str, cpus[a:b])) for a, b in itertools.pairwise(bounds)]


def _outcome(job: Job, workdir: pathlib.Path, failures: Mapping[str, str]) -> str:
  """'finished, PPL 69.53, 4.2 min'."""
  if job.name in failures:
    return f"failed: {failures[job.name]}"
  outcome = summary.read(workdir / job.name)
  if outcome["status"] == "diverged":
    return f"diverged: {(outcome.get('divergence') or {}).get('text', '')}"
  quality = "" if outcome.get("perplexity") is None else f", PPL {outcome['perplexity']:.2f}"
  took = "" if outcome.get("seconds") is None else f", {tables.duration(outcome['seconds'])}"
  return f"{outcome['status']}{quality}{took}"


def _reason(status: int, running: _Running) -> str:
  """Why a command failed: the signal that killed it, its last line "error: …", or whatever it wrote last."""
  if status < 0:
    return f"killed by {signal.Signals(-status).name}"
  with running.log.open("rb") as log:
    log.seek(max(running.begun, log.seek(0, os.SEEK_END) - _TAIL))
    written = log.read().decode(errors="replace")
  lines = [line.strip() for line in re.split(r"[\r\n]", written) if line.strip()]
  named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
  return (named or lines or [f"exit status {status}, without a message"])[-1]
