"""The linear training loop: mesh → data → state → restore → steps → evaluation → save."""

import collections
import functools
import pathlib
import time

import jax
from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import instruments, origin, paths, sharding
from entropy_attn import start as start_lib
from entropy_attn import teacher as teacher_lib
from entropy_attn.data import pipeline
from entropy_attn.divergence import NonFinite
from entropy_attn.errors import UserError
from entropy_attn.evaluate import Evaluator
from entropy_attn.progress import say, timed
from entropy_attn.reporter import Reporter
from entropy_attn.run import checkpoint, folder, metrics, summary, text
from entropy_attn.stop import StopSignal
from entropy_attn.train_step import abstract_state, init_state, trace_train_step


def train(
  config: ConfigDict, workdir: pathlib.Path, *, accept_changed_text: bool = False, report: bool = True
) -> dict | None:
  """Trains, or resumes, the run of a folder.

  Args:
    accept_changed_text: go on although the text is another than the run was trained on until now.
    report: write its report as it goes.

  Returns:
    What it reached: status (finished or diverged), step, divergence, the last evaluation, times. None where the run had
    finished before: its records then stay as they are.

  Raises:
    UserError: for what the user can mend, and where a signal stopped the run (after saving).
  """
  started = time.monotonic()
  if config.data.path and paths.expand(config.data.path, "data.path").resolve() == workdir.resolve():
    raise UserError(f"--workdir={workdir} is the folder of the text, data.path: choose another, such as {workdir}/run")
  changed = folder.check_same_run(workdir, config)
  outcome = summary.read(workdir)
  if outcome and outcome["status"] == "finished":
    asked = f" (asked for now: {'; '.join(changed)})" if changed else ""
    say(f"{workdir} is finished: this is its summary; --mode=eval evaluates it anew{asked}")
    return None
  mesh = sharding.make_mesh(config)
  devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}"
  say(f"{config_lib.describe(config)}; {devices}")
  taught_by = teacher_lib.find(config)
  starts_from = None if checkpoint.any_saved(workdir) else start_lib.find(config)  # a resumed run needs it no more
  given = start_lib.tokenizer_for(starts_from, config) if starts_from else None
  dataset = pipeline.prepare(config, text.read_tokenizer(workdir) or given)
  say(dataset.description)
  for model in filter(None, (taught_by, starts_from)):
    origin.check_text(model, dataset)
  abstract = abstract_state(config, mesh)
  say(instruments.parameters(abstract.params, mesh))
  trace = instruments.Trace(config_lib.profile_steps(config), metrics.events_folder(workdir))
  index, count = sharding.process_shard(mesh)
  batches = iter(pipeline.train_iterator(dataset, config, shard_index=index, shard_count=count))
  with folder.opened(workdir), jax.set_mesh(mesh), StopSignal() as stop, trace:
    checkpoint.check_space(workdir, abstract, config.train.keep_checkpoints)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    teacher, sources = None, {}
    if taught_by:
      teacher, sources["distill.teacher"] = teacher_lib.restore(taught_by, config, mesh)
    constants = (teacher.variables,) if teacher else ()  # of the step, in no checkpoint of this run
    restored = checkpoints.restore_latest(abstract)
    if restored is None and starts_from:
      state, changed, sources["init.source"] = start_lib.state_from(starts_from, config, abstract, mesh)
      for line in changed.lines:
        say(f"{starts_from.named}: {line}")
    elif restored is None:
      state = jax.jit(functools.partial(init_state, config), out_shardings=sharding.of(abstract))()
    else:
      state, position = restored
      batches.set_state(position)
      say(f"resumed from step {int(state.step)}")
    start = int(state.step)
    recorded = functools.partial(_record, config, workdir, dataset, sources, start, accept_changed_text)
    folder.first_alone(functools.partial(recorded, anew=restored is None))
    positions = collections.deque([(start, batches.get_state())], maxlen=3)  # the state may be a step or two behind

    traced = trace_train_step(config, mesh, teacher)
    step_fn, compile_seconds = timed("compiling the training step", lambda: traced.lower().compile())
    evaluator = Evaluator(config, dataset, mesh)
    evaluated = metrics.has(workdir, "eval", start)  # if not, a stop came before it
    reporter = Reporter(config, workdir, start, report=report)

    def save() -> int:
      """Saves the state as it is, with the position of its data; returns its step."""
      step = int(state.step)
      checkpoints.save(step, state.replace(finite=state.finite | True), dict(positions)[step])
      return step

    def evaluate(*, record: bool = True) -> dict:
      with stop.immediately():
        evaluation = evaluator(state.variables)
      if record:
        reporter.evaluated(step, evaluation)
      return evaluation

    step, stopping = start, False
    try:
      try:
        if _evaluation_due(config, start) and not evaluated:
          evaluate()
        for step in range(start + 1, config.train.steps + 1):
          batch = sharding.put_batch(next(batches), mesh)
          with trace.step(step):
            state, measured = step_fn(state, batch, *constants)
          positions.append((step, batches.get_state()))
          reporter.add(step, measured)
          stopping = checkpoints.reached_preemption(step) if jax.process_count() > 1 else stop.requested
          eval_due = _evaluation_due(config, step)
          save_due = step % config.train.checkpoint_every == 0 or step == config.train.steps
          if stopping or eval_due or save_due:
            reporter.pause()
          if save_due:
            save()
          if stopping:
            raise KeyboardInterrupt
          if eval_due:
            evaluate()
        closed = evaluated and start == config.train.steps
        outcome = evaluate(record=not closed) | {"status": "finished", "step": config.train.steps, "divergence": None}
      except (KeyboardInterrupt, UserError, OSError) as error:  # no step is lost by a signal or a fault of the data
        if jax.process_count() > 1 and not stopping:  # a fault of this process alone: to save would wait for the others
          raise UserError(_fault(error)) from error
        reporter.pause()
        saved = save()
        checkpoints.close()
        raise UserError(_why_stopped(error, stop.name, saved, workdir)) from error
    except NonFinite as found:
      save()  # frozen since the step before
      outcome = found.outcome()
    finally:
      reporter.close()
    checkpoints.close()
  return outcome | {
    "seconds": time.monotonic() - started,
    "compile_seconds": compile_seconds,
    "tokens_per_second": reporter.tokens_per_second,
    "mfu": reporter.mfu,
  }


def _keep_records(workdir: pathlib.Path) -> None:
  """Keeps what a run without a checkpoint had recorded.

  Raises:
    UserError: where it had come to an end, so that its checkpoints must have been lost.
  """
  if summary.read(workdir):
    raise UserError(
      f"{workdir} holds the summary of a run but no checkpoint of it: restore its checkpoints, or choose another "
      "--workdir"
    )
  if metrics.last_step(workdir) is not None:
    kept = metrics.set_aside(workdir)
    say(f"no checkpoint was saved in {workdir}: starting again from step 0; what it had recorded is kept in {kept}")


def _record(
  config: ConfigDict,
  workdir: pathlib.Path,
  dataset,
  sources: dict,
  start: int,
  accept_changed_text: bool,
  *,
  anew: bool,
) -> None:
  """Writes into a run's folder what this start is, after checking it again: no other process writes there now."""
  folder.check_same_run(workdir, config)
  if not anew:
    folder.check_same_sources(workdir, sources)
  for line in text.record(workdir, dataset, start, accept=accept_changed_text):
    say(f"note: from step {start} on another text, as accepted: {line}")
  if anew:
    _keep_records(workdir)
  for line in folder.record(workdir, config, sources):
    say(f"note: from step {start} on {line}")


def _evaluation_due(config: ConfigDict, step: int) -> bool:
  """Whether an evaluation follows a step on the way; the last one is made in any case."""
  return config.eval.every > 0 and step % config.eval.every == 0 and 0 < step < config.train.steps


def _why_stopped(error: BaseException, signal: str | None, step: int, workdir: pathlib.Path) -> str:
  saved = f"saved step {step} in {workdir}; the same command resumes"
  if isinstance(error, KeyboardInterrupt):
    return f"stopped by {signal or 'a preemption notice'}: {saved}"
  return f"{_fault(error)} ({saved}, once that is mended)"


def _fault(error: BaseException) -> str:
  if isinstance(error, OSError):
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
  return str(error) or type(error).__name__
