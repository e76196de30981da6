"""What a run says while it works: lines, and bars."""

from collections.abc import Callable, Iterable
import sys
import time

from tqdm import tqdm


def say(text: str) -> None:
  """One line for the user, from the first process alone, that does not tear a progress bar."""
  if _is_first():
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def timed(what: str, action: Callable):
  """(what action() returns, its seconds), said before and after."""
  say(f"{what} …")
  start = time.monotonic()
  result = action()
  seconds = time.monotonic() - start
  say(f"{what}: {seconds:.1f} s")
  return result, seconds


def bar(iterable: Iterable | None = None, *, what: str, unit: str, total: int | None = None, start: int = 0) -> tqdm:
  """A progress bar on standard error, of the first process alone: the only place that makes one.

  Args:
    iterable: what is gone through; None: the caller calls `update`.
    what: the bar's first word.
    unit: of what is counted, such as "step".
    total: how many there are; None: as many as the iterable says.
    start: how many were done before.
  """
  return tqdm(
    iterable, desc=what, unit=f" {unit}", total=total, initial=start, dynamic_ncols=True, smoothing=0.05,
    mininterval=0.5 if sys.stderr.isatty() else 20, leave=False, disable=not _is_first(),
  )  # fmt: skip


def _is_first() -> bool:
  jax = sys.modules.get("jax")  # without it there is one process
  return jax is None or jax.process_index() == 0
