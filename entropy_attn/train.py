"""The linear training loop: mesh → data → state → restore → steps → evaluation → save."""

import collections
import functools
import json
import pathlib
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import checkpoint, metrics, run_folder, sharding, summary
from entropy_attn.config import architecture_name
from entropy_attn.data import pipeline
from entropy_attn.errors import UserError
from entropy_attn.evaluate import bins_max, evaluate, head_statistics, make_eval_step
from entropy_attn.optimizer import make_optimizer
from entropy_attn.progress import NonFinite, Reporter, StopSignal, say, timed
from entropy_attn.train_step import TrainState, effective_weight, init_state, trace_train_step


class Diverged(Exception):
  """A loss or gradient was not finite while train.on_nonfinite is 'stop'."""


def train(config: ConfigDict, workdir: pathlib.Path) -> dict:
  """Trains, or resumes, the run of a folder; returns what it wrote to summary.json.

  Raises:
    UserError: for what the user can mend, and where Ctrl-C or SIGTERM stopped the run (after saving).
    Diverged: where the loss or a gradient was not finite (after saving the state before that step).
  """
  started = time.monotonic()
  lead = jax.process_index() == 0
  checkpoint.check_same_run(workdir, config)
  mesh = sharding.make_mesh(config)
  say(f"{architecture_name(config)} on {jax.device_count()} × {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}")
  dataset = pipeline.prepare(config)
  say(dataset.description)
  if config.regularizer.weight > 0:
    say(f"regulariser: effective weight {effective_weight(config):.3g} on {config.regularizer.reduction}")

  optimizer = make_optimizer(config)
  init = functools.partial(init_state, config, optimizer)
  abstract = jax.eval_shape(init)
  shardings = sharding.state_shardings(abstract, mesh)
  run_folder.make(workdir, config)
  checkpoint.check_space(workdir, abstract, config.train.keep_checkpoints)

  index, count = sharding.process_shard(mesh)
  batches = iter(pipeline.train_iterator(dataset, config, shard_index=index, shard_count=count))
  checkpoints = checkpoint.Checkpoints(workdir, config)
  with jax.set_mesh(mesh), StopSignal() as stop:
    restored = checkpoints.restore_latest(sharding.with_shardings(abstract, shardings))
    if restored is None:
      state: TrainState = jax.jit(init, out_shardings=shardings)()
    else:
      state, position = restored
      batches.set_state(position)
      say(f"resumed from step {int(state.step)}")
    start = int(state.step)
    if start == config.train.steps and (workdir / "summary.json").exists():
      checkpoints.close()
      say(f"{workdir} is finished: this is its summary; --mode=eval evaluates it anew")
      return json.loads((workdir / "summary.json").read_text())
    positions = collections.deque([(start, batches.get_state())], maxlen=3)

    traced = trace_train_step(config, mesh)
    step_fn, compile_seconds = timed("compiling the training step", lambda: traced.lower().compile())
    eval_step = make_eval_step(config, mesh)
    writer = metrics.Writer(workdir, start) if lead else None
    reporter = Reporter(config, writer, start)
    stopping = None
    try:
      for step in range(start + 1, config.train.steps + 1):
        state, figures = step_fn(state, sharding.put_batch(next(batches), mesh))
        positions.append((step, batches.get_state()))
        reporter.add(step, figures)
        last = step == config.train.steps
        stopping = checkpoints.reached_preemption(step) if jax.process_count() > 1 else stop.requested
        eval_due = config.eval.every and step % config.eval.every == 0 and not last
        if stopping or last or eval_due or step % config.train.checkpoint_every == 0:
          reporter.pause()
        if last or step % config.train.checkpoint_every == 0:
          checkpoints.save(step, state, batches.get_state())
        if stopping:
          raise UserError(_stopped(stop.requested or "a preemption notice", step, workdir))
        if eval_due:
          with stop.immediately():
            evaluation = evaluate(eval_step, state.variables, dataset, config, mesh)
          _report_evaluation(evaluation, step, writer, config)
      with stop.immediately():
        evaluation = evaluate(eval_step, state.variables, dataset, config, mesh)
      _report_evaluation(evaluation, config.train.steps, writer, config)
      outcome = {"status": "finished", "step": config.train.steps, "divergence": None}
    except NonFinite as found:
      good = int(state.step)  # frozen since the step before
      checkpoints.save(good, state.replace(finite=state.finite | True), dict(positions)[good])
      outcome = {"status": "diverged", "step": found.step, "divergence": _divergence(found, config)}
      evaluation = head_statistics(found.values["entropy_LxH"], config) | {
        "loss": None, "perplexity": None, "nonfinite_rows_L": found.values["nonfinite_rows_L"],
      }  # fmt: skip
      if writer:
        writer.write("train", found.step, found.values)
    except (KeyboardInterrupt, UserError) as error:  # no step is lost, whether a signal or a fault of the data
      if jax.process_count() > 1 and not stopping:
        raise  # a fault of this process alone: to save would wait for the others without end
      reporter.pause()
      step = int(state.step)
      checkpoints.save(step, state, dict(positions)[step])
      checkpoints.close()
      if isinstance(error, UserError):
        raise
      raise UserError(_stopped("Ctrl-C", step, workdir)) from None
    finally:
      reporter.close()
      if writer:
        writer.close()
    checkpoints.close()

  result = summary.summarize(
    config,
    evaluation,
    {
      **outcome,
      "effective_regularizer_weight": effective_weight(config),
      "seconds": time.monotonic() - started,
      "compile_seconds": compile_seconds,
      "tokens_per_second": reporter.tokens_per_second,
      "mfu": reporter.mfu,
    },
  )
  if lead:
    (workdir / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
  if outcome["status"] == "diverged" and config.train.on_nonfinite == "stop":
    raise Diverged(f"{outcome['divergence']['text']}; the state before it is saved in {workdir}")
  return result


def _stopped(by: str, step: int, workdir: pathlib.Path) -> str:
  return f"stopped by {by}: saved step {step} in {workdir}; the same command resumes"


def _report_evaluation(evaluation: dict, step: int, writer: metrics.Writer | None, config: ConfigDict) -> None:
  if writer:
    writer.write("eval", step, evaluation)
  heads = summary.heads_line(evaluation["entropy_LxH"], bins_max(config), evaluation["head_shares"])
  say(f"step {step}: loss {evaluation['loss']:.4f}, PPL {evaluation['perplexity']:.2f}; {heads}")


def _divergence(found: NonFinite, config: ConfigDict) -> dict:
  """What was first non-finite, and which heads had collapsed by then."""
  values = found.values
  rows_L, tokens_L = np.asarray(values["nonfinite_rows_L"]), np.asarray(values["nonfinite_tokens_L"])
  bad_forward = np.flatnonzero((rows_L > 0) | (tokens_L > 0))
  bad_gradient = np.flatnonzero(~np.isfinite(values["grad_norm_L"]))
  if bad_forward.size:
    layer = int(bad_forward[0])
    where = f"the attention of layer {layer}" if rows_L[layer] else f"the output of layer {layer}"
  elif not np.isfinite(values["loss"]):
    layer, where = None, "the loss (every layer's output is finite)"
  elif bad_gradient.size:
    layer = int(bad_gradient[-1])  # the backward pass comes from the top
    where = f"the gradient of layer {layer}"
  else:
    layer, where = None, "the gradient outside the layers"
  collapsed = summary.collapsed_heads(values["entropy_LxH"], bins_max(config))
  heads = f"collapsed heads: {summary.shorten(collapsed)}" if collapsed else "no head had collapsed"
  return {
    "text": f"step {found.step}: not finite first in {where}; {heads}",
    "step": found.step,
    "first_nonfinite_layer": layer,
    "where": where,
    "collapsed_heads": collapsed,
  }
