"""The report of a run while it goes on: written now and then, and never a reason for the run to end."""

import pathlib
import time

from entropy_attn.errors import one_line
from entropy_attn.progress import say
from entropy_attn.report.page import extra

SECONDS = 60.0  # from one report to the next, at least …
PART = 0.02  # … and so long that writing takes no larger part of the run's time


class Live:
  """Keeps report.html in a run's folder up to date, where the packages of requirements-report.txt are installed."""

  def __init__(self, workdir: pathlib.Path, *, wanted: bool = True):
    self._workdir, self._wanted = workdir, wanted
    self._next = time.monotonic() + SECONDS  # a run that is over within a minute has one at its end
    self._failed = False

  def update(self, *, at_once: bool = False) -> None:
    """Writes the report, unless none is wanted, the last one or the start was a short while ago, or packages lack.

    Whatever goes wrong is told, once.

    Args:
      at_once: however old the last one is: for the end of a run.
    """
    started = time.monotonic()
    if not self._wanted or not extra.installed() or (started < self._next and not at_once):
      return
    try:
      from entropy_attn.report.page import page  # only here: it imports what may not be there

      page.write(self._workdir)
    except Exception as error:  # a picture of a run is no reason to lose it
      if not self._failed:
        self._failed = True
        say(f"note: no report was written in {self._workdir}: {type(error).__name__}: {one_line(error)}")
    ended = time.monotonic()
    self._next = ended + max(SECONDS, (ended - started) / PART)
