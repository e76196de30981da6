"""The linear training loop: mesh → data → state → restore → steps → evaluation → save."""

import collections
import functools
import pathlib
import time

import jax
from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import sharding
from entropy_attn.data import pipeline
from entropy_attn.divergence import NonFinite
from entropy_attn.errors import UserError
from entropy_attn.evaluate import Evaluator
from entropy_attn.progress import say, timed
from entropy_attn.reporter import Reporter
from entropy_attn.run import checkpoint, folder, summary
from entropy_attn.stop import StopSignal
from entropy_attn.train_step import abstract_state, init_state, trace_train_step


def train(config: ConfigDict, workdir: pathlib.Path) -> dict:
  """Trains, or resumes, the run of a folder.

  Returns:
    What it reached: status (finished or diverged), step, divergence, the last evaluation, times. Of a run that had
    finished before: its summary.

  Raises:
    UserError: for what the user can mend, and where Ctrl-C or SIGTERM stopped the run (after saving).
  """
  started = time.monotonic()
  folder.check_same_run(workdir, config)
  mesh = sharding.make_mesh(config)
  devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}"
  say(f"{config_lib.describe(config)}; {devices}")
  dataset = pipeline.prepare(config)
  say(dataset.description)
  abstract = abstract_state(config, mesh)
  folder.make(workdir, config)
  checkpoint.check_space(workdir, abstract, config.train.keep_checkpoints)

  index, count = sharding.process_shard(mesh)
  batches = iter(pipeline.train_iterator(dataset, config, shard_index=index, shard_count=count))
  checkpoints = checkpoint.Checkpoints(workdir, config)
  with jax.set_mesh(mesh), StopSignal() as stop:
    restored = checkpoints.restore_latest(abstract)
    if restored is None:
      state = jax.jit(functools.partial(init_state, config), out_shardings=sharding.of(abstract))()
    else:
      state, position = restored
      batches.set_state(position)
      say(f"resumed from step {int(state.step)}")
    start = int(state.step)
    if start == config.train.steps and (outcome := summary.read(workdir)):
      checkpoints.close()
      say(f"{workdir} is finished: this is its summary; --mode=eval evaluates it anew")
      return outcome
    positions = collections.deque([(start, batches.get_state())], maxlen=3)  # the state may be a step or two behind

    traced = trace_train_step(config, mesh)
    step_fn, compile_seconds = timed("compiling the training step", lambda: traced.lower().compile())
    evaluator = Evaluator(config, dataset, mesh)
    reporter = Reporter(config, workdir, start)
    stopping = None

    def save() -> int:
      """Saves the state as it is, with the position of its data; returns its step."""
      step = int(state.step)
      checkpoints.save(step, state.replace(finite=state.finite | True), dict(positions)[step])
      return step

    def evaluate() -> dict:
      with stop.immediately():
        evaluation = evaluator(state.variables)
      reporter.evaluated(step, evaluation)
      return evaluation

    step = start
    try:
      for step in range(start + 1, config.train.steps + 1):
        state, measured = step_fn(state, sharding.put_batch(next(batches), mesh))
        positions.append((step, batches.get_state()))
        reporter.add(step, measured)
        last = step == config.train.steps
        stopping = checkpoints.reached_preemption(step) if jax.process_count() > 1 else stop.requested
        eval_due = config.eval.every and step % config.eval.every == 0 and not last
        save_due = step % config.train.checkpoint_every == 0 or last
        if stopping or eval_due or save_due:
          reporter.pause()
        if save_due:
          save()
        if stopping:
          raise UserError(_stopped(stop.requested or "a preemption notice", step, workdir))
        if eval_due:
          evaluate()
      outcome = evaluate() | {"status": "finished", "step": config.train.steps, "divergence": None}
    except NonFinite as found:
      save()  # frozen since the step before
      outcome = found.outcome()
    except (KeyboardInterrupt, UserError) as error:  # no step is lost, whether a signal or a fault of the data
      if jax.process_count() > 1 and not stopping:
        raise  # a fault of this process alone: to save would wait for the others without end
      reporter.pause()
      step = save()
      checkpoints.close()
      if isinstance(error, UserError):
        raise
      raise UserError(_stopped("Ctrl-C", step, workdir)) from None
    finally:
      reporter.close()
    checkpoints.close()
  return outcome | {
    "seconds": time.monotonic() - started,
    "compile_seconds": compile_seconds,
    "tokens_per_second": reporter.tokens_per_second,
    "mfu": reporter.mfu,
  }


def _stopped(by: str, step: int, workdir: pathlib.Path) -> str:
  return f"stopped by {by}: saved step {step} in {workdir}; the same command resumes"
