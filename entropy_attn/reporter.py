"""What a user sees of a run while it trains: the bar, the records of its steps, and its evaluations."""

from collections.abc import Mapping
import pathlib
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import counts, entropy
from entropy_attn.divergence import NonFinite
from entropy_attn.errors import shorten
from entropy_attn.progress import bar, say
from entropy_attn.report import tables
from entropy_attn.report.page.live import Live
from entropy_attn.run.metrics import Writer


class Reporter:
  """Shows and records what a run measures. It reads a step's metrics one step late, so that the device never waits.

  Args:
    workdir: the run's folder; the first process alone records there.
    start: the step that the run goes on from.
    report: whether it writes the run's report, too, now and then.

  Raises:
    UserError: where the disk is full, or what is recorded there is no record; so do the methods.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path, start: int, *, report: bool = True):
    self._config, self._max_entropy = config, config_lib.bins_max(config)
    self._writer = Writer(workdir, start) if jax.process_index() == 0 else None
    self._live = Live(workdir, wanted=report) if self._writer else None
    if self._writer:
      self._writer.write_hparams(_hparams(config))
    self._pending = None
    self._tokens = config.train.batch_size * config.model.context_length
    self._clock, self._counted = None, 0  # seconds of stepping, and the steps in them
    self._seconds, self._steps = 0.0, 0
    self._bar = bar(total=config.train.steps, start=start, what="train", unit="step")

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
      record = self._record(jax.device_get(metrics))
      self._write("train", step, record)
      self._write_outcome(success=False)
      raise NonFinite(step, record)
    self._bar.set_postfix_str(f"loss {loss:.3f}, {self.tokens_per_second or 0:,.0f} tokens/s", refresh=False)
    if step % self._config.train.log_every == 0 or step == self._config.train.steps:
      self._write("train", step, self._record(jax.device_get(metrics)))

  def evaluated(self, step: int, evaluation: Mapping) -> None:
    """Records and tells an evaluation (of `evaluate.Evaluator`)."""
    self._write("eval", step, evaluation)
    if self._writer:
      self._writer.write_images(step, {"heads": self._picture(step, evaluation)})
      self._live.update()
    if step == self._config.train.steps:
      self._write_outcome(success=True)
    say(f"step {step}: {_quality_line(evaluation)}; {_heads_line(evaluation)}")

  def pause(self) -> None:
    """Stops the clock of tokens/s, before evaluation or a checkpoint: what was recorded is safe from then on."""
    self._handle_pending()
    if self._writer:
      self._writer.flush()
    if self._clock is not None:
      self._seconds += time.monotonic() - self._clock
      self._steps += self._counted
    self._clock, self._counted = None, 0

  @property
  def tokens_per_second(self) -> float | None:
    """Throughput of all the steps since this start, without compilation, evaluation and checkpoints."""
    running = time.monotonic() - self._clock if self._clock is not None else 0.0
    steps, seconds = self._steps + self._counted, self._seconds + running
    return steps * self._tokens / seconds if steps else None

  @property
  def mfu(self) -> float | None:
    """Model FLOPs utilisation, where the chip's peak is known."""
    peak = counts.peak_flops(jax.devices()[0].device_kind)
    rate = self.tokens_per_second
    if peak is None or rate is None:
      return None
    return rate * counts.training_flops_per_token(self._config.model) / (peak * jax.device_count())

  def close(self) -> None:
    """Ends the bar and the records."""
    self._bar.close()
    if self._writer:
      self._writer.close()

  def _write(self, kind: str, step: int, values: Mapping) -> None:
    if self._writer:
      self._writer.write(kind, step, values)

  def _write_outcome(self, success: bool) -> None:
    if self._writer:
      self._writer.write_outcome(success)

  def _picture(self, step: int, evaluation: Mapping) -> np.ndarray:
    """Every head's entropy, in the published colours."""
    from entropy_attn.report import figures  # not before the first step: Matplotlib takes a second to import

    max_entropy = evaluation["max_entropy"]
    about = f"PPL {evaluation['perplexity']:.2f} · step {step:,} · Max {max_entropy:.2f} nats"
    title = f"{config_lib.architecture_name(self._config)}\n{about}"
    return figures.pixels(figures.heatmap(evaluation["entropy_LxH"], max_entropy, title))

  def _record(self, values: dict) -> dict:
    values = values | entropy.head_statistics(values["entropy_LxH"], self._max_entropy)
    rates = {"tokens_per_second": self.tokens_per_second, "mfu": self.mfu}
    return values | {name: value for name, value in rates.items() if value is not None}


def _hparams(config: ConfigDict) -> dict:
  """The fields as "group.field", and the architecture."""
  fields = {f"{group}.{name}": value for group, values in config.to_dict().items() for name, value in values.items()}
  return {"architecture": config_lib.architecture_name(config), **fields}


def _quality_line(evaluation: Mapping) -> str:
  """Loss and perplexity, and bits a byte where the evaluation has them."""
  text = f"loss {evaluation['loss']:.4f}, PPL {evaluation['perplexity']:.2f}"
  bits = evaluation.get("bits_per_byte")
  return text if bits is None else f"{text}, {bits:.3f} bits/byte"


def _heads_line(heads: Mapping) -> str:
  """One line that names collapsed heads (below Max/4) and counts overloaded ones (from 3 Max/4)."""
  overloaded = int(np.sum(heads["entropy_LxH"] >= 0.75 * heads["max_entropy"]))
  text = f"heads {tables.percent(heads['head_shares'])}, overloaded {overloaded} of {heads['entropy_LxH'].size}"
  collapsed = entropy.collapsed_heads(heads["entropy_LxH"], heads["max_entropy"])
  return text + (f", collapsed {shorten(collapsed)}" if collapsed else "")
