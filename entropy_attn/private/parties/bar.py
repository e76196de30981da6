"""A progress bar of a program's steps, with the layer at work."""

from entropy_attn import progress
from entropy_attn.private.program.types import Step

# For a terminal: down and up again, so that there is a line below; keep the place; go to that line. And back.
_BELOW, _BACK = "\x1bD\x1b[A\x1b7\n", "\x1b8"


class Steps:
  """A bar over a program's steps, in the order they run; without a terminal, a line a layer. On standard error.

  Args:
    what: the line's first word.
    below: the bar has a line of its own below the cursor, which is back in its place when it ends: of text that is
      printed piece by piece, nothing is overwritten.
  """

  def __init__(self, what: str, *, below: bool = False):
    self._what, self._bar, self._last, self._below = what, None, None, below

  def __call__(self, step: Step, index: int, count: int) -> None:
    """Shows that `step`, the index-th of count, is to run."""
    place = step.kind if step.layer is None else f"layer {step.layer}"
    if not progress.watched():
      if place != self._last:
        progress.say(f"{self._what}: {place}")
        self._last = place
      return
    if self._bar is None or index == 0:
      self.close()
      if self._below:
        progress.control(_BELOW)
      self._bar = progress.bar(total=count, unit="step", what=self._what)
    self._bar.set_postfix_str(f"{place}: {step.kind}", refresh=False)
    self._bar.update(index - self._bar.n)
    self._bar.refresh()

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
      if self._below:
        progress.control(_BACK)
