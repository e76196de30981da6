"""The signals that stop a run: it saves its state and ends."""

import contextlib
import os
import signal
import sys

import jax

# Ctrl-C; a scheduler's end; a closed terminal; Slurm's warning (sbatch --signal=USR1@120).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopSignal:
  """Turns the first of SIGNALS into a request to save and stop. Only a second Ctrl-C interrupts at once: what a
  scheduler or a closed terminal sends comes in pairs, and the second must not end the saving of the first.

  Several processes must stop at one step: JAX turns a SIGTERM at any of them into a notice that all of them hear
  (`Checkpoints.reached_preemption`), so the others are passed on as one, and a second Ctrl-C kills.

  Attributes:
    name: of the first signal that came, or None.
    requested: whether this process, alone, is to save and stop.
  """

  def __init__(self):
    self.name: str | None = None
    self.requested = self._immediate = False

  def __enter__(self):
    alone = jax.process_count() == 1
    self._terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _is_terminal(stream)]
    self._before = {}
    for number in SIGNALS if alone else [n for n in SIGNALS if n != signal.SIGTERM]:
      if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:  # nohup
        continue
      self._before[number] = signal.signal(number, self._handle if alone else self._pass_on)
    return self

  def __exit__(self, *_):
    for number, before in self._before.items():
      signal.signal(number, before)

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

  def _handle(self, number, _):
    again, self.requested = self.requested, True
    self._note(number)
    if self._immediate or (again and number == signal.SIGINT):
      self._immediate = False  # one interrupt is enough: the next must not end the saving
      raise KeyboardInterrupt

  def _pass_on(self, number, _):
    again = self.name is not None
    self._note(number)
    if again and number == signal.SIGINT:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    elif not again:
      os.kill(os.getpid(), signal.SIGTERM)

  def _note(self, number) -> None:
    self.name = self.name or signal.Signals(number).name
    if number == signal.SIGHUP:  # the terminal is gone: what is said now would fail
      nowhere = os.open(os.devnull, os.O_WRONLY)
      for descriptor in self._terminals:
        os.dup2(nowhere, descriptor)
      os.close(nowhere)


def _is_terminal(stream) -> bool:
  try:
    return stream.isatty()
  except (AttributeError, ValueError):  # closed, or none at all
    return False
