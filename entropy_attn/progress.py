"""What a user sees while a run trains: the bar, the log, and the signals that stop it."""

from collections.abc import Callable
import contextlib
import os
import signal
import sys
import time

import jax
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from entropy_attn import evaluate, flops
from entropy_attn.metrics import Writer


def say(text: str) -> None:
  """One line for the user, from the first process alone, that does not tear a progress bar."""
  if jax.process_index() == 0:
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


class NonFinite(Exception):
  """Carries the step whose loss or gradient was not finite, and its metrics."""

  def __init__(self, step: int, values: dict):
    super().__init__(step)
    self.step, self.values = step, values


class Reporter:
  """Reads each step's metrics one step late, so that the device never waits, and shows and records them."""

  def __init__(self, config: ConfigDict, writer: Writer | None, start: int):
    self._config, self._writer = config, writer
    self._pending = None
    self._tokens = config.train.batch_size * config.model.context_length
    self._clock, self._counted = None, 0  # seconds of stepping, and the steps in them
    self._seconds, self._steps = 0.0, 0
    self._bar = tqdm(
      total=config.train.steps, initial=start, desc="train", unit="step", disable=jax.process_index() > 0,
      mininterval=0.5 if sys.stderr.isatty() else 20, smoothing=0.05, dynamic_ncols=True,
    )  # fmt: skip

  def add(self, step: int, metrics: dict) -> None:
    """Takes the metrics of a step just dispatched; handles those of the step before.

    Raises:
      NonFinite: where those were not finite.
    """
    if self._clock is None:
      self._clock, self._counted = time.monotonic(), 0
    else:
      self._counted += 1
    self._handle_pending()
    self._pending = (step, metrics)

  def _handle_pending(self) -> None:
    """Waits for the last step, and handles its metrics."""
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    loss, finite = jax.device_get((metrics["loss"], metrics.pop("finite")))
    self._bar.update(1)
    if not finite:
      raise NonFinite(step, jax.device_get(metrics))
    self._bar.set_postfix_str(f"loss {loss:.3f}, {self.tokens_per_second or 0:,.0f} tokens/s", refresh=False)
    if self._writer and (step % self._config.train.log_every == 0 or step == self._config.train.steps):
      self._writer.write("train", step, self._record(jax.device_get(metrics)))

  def pause(self) -> None:
    """Stops the clock of tokens/s, before evaluation or a checkpoint."""
    self._handle_pending()
    if self._clock is not None:
      self._seconds += time.monotonic() - self._clock
      self._steps += self._counted
    self._clock, self._counted = None, 0

  @property
  def tokens_per_second(self) -> float | None:
    """Of all the steps of this start, compilation, evaluation and checkpoints left out."""
    running = time.monotonic() - self._clock if self._clock is not None else 0.0
    steps, seconds = self._steps + self._counted, self._seconds + running
    return steps * self._tokens / seconds if steps else None

  @property
  def mfu(self) -> float | None:
    """Model FLOPs utilisation, where the chip's peak is known."""
    peak = flops.peak_flops(jax.devices()[0].device_kind)
    rate = self.tokens_per_second
    if peak is None or rate is None:
      return None
    return rate * flops.training_flops_per_token(self._config.model) / (peak * jax.device_count())

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()

  def _record(self, values: dict) -> dict:
    values = values | evaluate.head_statistics(np.asarray(values["entropy_LxH"]), self._config)
    rates = {"tokens_per_second": self.tokens_per_second, "mfu": self.mfu}
    return values | {name: value for name, value in rates.items() if value is not None}


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
