"""Trains or evaluates a model.

    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart --mode=eval

Fields are overridden by flags such as --config.train.steps=1000.
"""

import pathlib
import sys

from absl import flags
import jax

from entropy_attn import cli, counts, evaluate
from entropy_attn import train as train_lib
from entropy_attn.private.price import predict
from entropy_attn.report import figures, tables
from entropy_attn.run import summary

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_config()
  cli.define_json()
  flags.DEFINE_string(
    "workdir", None, "The run's folder; one that holds the same run is resumed. Default: runs/ and the config's name."
  )
  flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the run's checkpoint.")
  flags.DEFINE_integer("step", None, "With --mode=eval: the checkpoint of this step; default: the newest.")
  flags.DEFINE_bool("accept_changed_text", False, "Resume although the text is not what the run was trained on.")
  flags.DEFINE_bool("multihost", False, "One of several processes; on TPU and Slurm they find each other.")
  flags.DEFINE_string("coordinator", None, "With --multihost elsewhere: host:port of process 0.")
  flags.DEFINE_integer("num_processes", None, "With --coordinator.")
  flags.DEFINE_integer("process_id", None, "With --coordinator.")


def main() -> None:
  """Runs the mode that the flags ask for."""
  config = cli.load_config()
  workdir = pathlib.Path(FLAGS.workdir or f"runs/{cli.config_name()}")
  if FLAGS.multihost:
    jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
  if FLAGS.mode == "eval":
    reached = evaluate.evaluate_checkpoint(config, workdir, FLAGS.step)
    result = summary.summarize(counts.summary(config), reached)
  else:
    reached = train_lib.train(config, workdir, accept_changed_text=FLAGS.accept_changed_text)
    result = summary.read(workdir) if reached is None else _conclude(config, workdir, reached)
  if jax.process_index() == 0:
    cli.write_json(result)
    print(tables.run_summary(result))
  if result["status"] == "diverged" and config.train.on_nonfinite == "stop":
    print(f"diverged: {result['divergence']['text']}; the state before it is saved in {workdir}", file=sys.stderr)
    sys.exit(1)


def _conclude(config, workdir: pathlib.Path, reached: dict) -> dict:
  """Writes what a run's folder keeps of its end, the summary last: where it lies, all the rest does."""
  result = summary.summarize(counts.summary(config), reached)
  result["private_inference"] = predict.summary_of(config)
  if jax.process_index() == 0:
    figures.write_run_figures(workdir)
    summary.write(workdir, result)
  return result


if __name__ == "__main__":
  cli.run(define_flags, main)
