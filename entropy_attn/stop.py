"""The signals that stop a run."""

import contextlib
import os
import signal

import jax


class StopSignal:
  """Turns the first Ctrl-C or SIGTERM into a request to save and stop; the second interrupts at once.

  Several processes must stop at one step: JAX turns a SIGTERM at any of them into a notice that all of them hear
  (`Checkpoints.reached_preemption`), so the first Ctrl-C is passed on as one, and the second kills.
  """

  def __init__(self):
    self.requested: str | None = None
    self._immediate = False

  def __enter__(self):
    alone = jax.process_count() == 1
    self._signals = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
    self._before = [signal.signal(number, self._handle if alone else _as_sigterm) for number in self._signals]
    return self

  def __exit__(self, *_):
    for number, before in zip(self._signals, self._before, strict=True):
      signal.signal(number, before)

  def _handle(self, number, _):
    if self.requested or self._immediate:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name

  @contextlib.contextmanager
  def immediately(self):
    """Within it a signal interrupts at once: for work that changes no state, such as evaluation."""
    self._immediate = True
    try:
      if self.requested:
        raise KeyboardInterrupt
      yield
    finally:
      self._immediate = False


def _as_sigterm(number, _):
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGTERM)
