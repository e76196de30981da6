"""What a run says while it works: lines, and bars, or lines in place of bars where nobody watches.

Nothing here raises because standard error is closed, full or gone: a run that saves after its terminal hung up goes on.
"""

from collections.abc import Callable, Iterable
import contextlib
import sys
import time

from tqdm import tqdm

_SECONDS = 30  # between two lines that stand in for a bar


def say(text: str) -> None:
  """One line for the user, from the first process alone, that does not tear a progress bar."""
  if not _is_first():
    return
  if watched():
    tqdm.write(text, file=_STREAM)
  else:
    _STREAM.write(text + "\n")
  _STREAM.flush()


def timed(what: str, action: Callable):
  """(what action() returns, its seconds), said before and after."""
  say(f"{what} …")
  start = time.monotonic()
  result = action()
  seconds = time.monotonic() - start
  say(f"{what}: {seconds:.1f} s")
  return result, seconds


def bar(iterable: Iterable | None = None, *, what: str, unit: str, total: int | None = None, start: int = 0):
  """A progress bar on standard error, of the first process alone: the only place that makes one.

  Where no terminal shows it, a line every half a minute and at the end. It has tqdm's `update`, `set_postfix_str`,
  `refresh`, `close` and `n`, is a context manager, and iterates.

  Args:
    iterable: what is gone through; None: the caller calls `update`.
    what: the bar's first word.
    unit: of what is counted, such as "step".
    total: how many there are; None: as many as the iterable says.
    start: how many were done before.
  """
  if not watched():
    return Lines(iterable, what=what, unit=unit, total=total, start=start)
  return tqdm(
    iterable, desc=what, unit=f" {unit}", total=total, initial=start, dynamic_ncols=True, smoothing=0.05,
    mininterval=0.5, leave=False, disable=not _is_first(), file=_STREAM,
  )  # fmt: skip


def watched() -> bool:
  """Whether a terminal shows standard error."""
  try:
    return sys.stderr is not None and sys.stderr.isatty()
  except (OSError, ValueError):  # hung up, or closed
    return False


def control(codes: str) -> None:
  """Writes codes that move the cursor to the terminal that shows the bars; nothing where there is none."""
  if watched() and _is_first():
    _STREAM.write(codes)
    _STREAM.flush()


class Lines:
  """A bar for a file: a line every half a minute and, unless it is within another bar and was quick, at the end."""

  _open = 0  # bars that are not closed

  def __init__(self, iterable: Iterable | None, *, what: str, unit: str, total: int | None, start: int):
    if total is None and hasattr(iterable, "__len__"):
      total = len(iterable)
    self.n, self._start, self._total = start, start, total
    self._iterable, self._what, self._unit, self._postfix = iterable, what, unit, ""
    self._begun = self._told = time.monotonic()
    self._told_n, self._closed = start, False
    self._inner = Lines._open > 0
    Lines._open += 1

  def __iter__(self):
    with self:
      for item in self._iterable:
        yield item
        self.update()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def update(self, count: int = 1) -> None:
    """Counts; says so where the last line is old enough."""
    self.n += count
    if time.monotonic() - self._told >= _SECONDS:
      self._tell()

  def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
    """What the line ends with."""
    del refresh
    self._postfix = text

  def refresh(self) -> None:
    """A line, where the last one is old enough."""
    self.update(0)

  def close(self) -> None:
    """Says the last line, once."""
    if self._closed:
      return
    self._closed = True
    Lines._open -= 1
    if self.n > self._told_n and (self._told_n > self._start or not self._inner):
      self._tell()

  def _tell(self) -> None:
    self._told, self._told_n = time.monotonic(), self.n
    say(describe(self._what, self._unit, self.n, self._start, self._total, self._told - self._begun, self._postfix))


def describe(what: str, unit: str, n: int, start: int, total: int | None, seconds: float, postfix: str) -> str:
  """'train: 120/600 steps, 3.2 steps/s, 2:30 left, loss 4.100': n of total after `seconds` that began at `start`."""
  units = unit if unit.endswith("s") else unit + ("es" if unit.endswith("ch") else "s")
  parts = [f"{what}: {n:,}" + (f"/{total:,}" if total is not None else "") + f" {units}"]
  rate = (n - start) / seconds if seconds > 0 else 0
  if rate >= 1:
    parts.append(f"{rate:,.1f} {units}/s" if rate < 100 else f"{rate:,.0f} {units}/s")
  elif rate > 0:
    parts.append(f"{1 / rate:,.1f} s a {unit.removesuffix('s')}")
  if rate > 0 and total is not None and n < total:
    parts.append(f"{tqdm.format_interval((total - n) / rate).removeprefix('0')} left")
  return ", ".join([*parts, postfix] if postfix else parts)


class _Stream:
  """Standard error as it is at the time; what cannot be written is dropped."""

  def write(self, text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # hung up; closed; None where it never was open
      sys.stderr.write(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
      sys.stderr.flush()

  def __getattr__(self, name: str):
    return getattr(sys.stderr, name)  # encoding and fileno, for tqdm


_STREAM = _Stream()


def _is_first() -> bool:
  jax = sys.modules.get("jax")  # without it there is one process
  return jax is None or jax.process_index() == 0
