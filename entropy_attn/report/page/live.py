"""The report of a run while it goes on: written now and then, and never a reason for the run to end."""

import pathlib
import time

from entropy_attn.errors import one_line
from entropy_attn.progress import say
from entropy_attn.report.page import charts

SECONDS = 60.0  # from one report to the next, at least


class Live:
  """Keeps report.html in a run's folder up to date, where the packages of requirements-report.txt are installed."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._last = time.monotonic()  # a run that is over within a minute has one at its end
    self._failed = False

  def update(self, *, at_once: bool = False) -> None:
    """Writes the report, unless the last one, or the start, is less than a minute old, or the packages are not there.

    Whatever goes wrong is told, once.

    Args:
      at_once: however old the last one is: for the end of a run.
    """
    if not charts.installed() or (time.monotonic() - self._last < SECONDS and not at_once):
      return
    try:
      from entropy_attn.report.page import page  # only here: it imports what may not be there

      page.write(self._workdir)
    except Exception as error:  # a picture of a run is no reason to lose it
      if not self._failed:
        self._failed = True
        say(f"note: no report was written in {self._workdir}: {type(error).__name__}: {one_line(error)}")
    self._last = time.monotonic()
