"""Trains or evaluates a model.

    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart --mode=eval

Fields are overridden by flags such as --config.train.steps=1000.
"""

import pathlib
import sys

from absl import flags

from entropy_attn import cli, processes
from entropy_attn.errors import UserError
from entropy_attn.progress import say

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_config()
  cli.define_json()
  cli.define_path(
    "workdir", None, "The run's folder; one that holds the same run is resumed. Default: runs/ and the config's name."
  )
  flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the run's checkpoint.")
  flags.DEFINE_integer(
    "step", None, "With --mode=eval: the checkpoint of this step; default: the newest.", lower_bound=0
  )
  flags.DEFINE_bool("report", True, "Write report.html as the run goes, where requirements-report.txt is installed.")
  flags.DEFINE_bool("accept_changed_text", False, "Resume although the text is not what the run was trained on.")
  processes.define_flags()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError for flags that contradict each other."""
  if FLAGS.step is not None and FLAGS.mode != "eval":
    raise UserError(f"--step={FLAGS.step} names a checkpoint to evaluate: add --mode=eval, or leave it out")


def main() -> None:
  """Runs the mode that the flags ask for."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  import jax

  from entropy_attn import counts, evaluate
  from entropy_attn import train as train_lib
  from entropy_attn.report import tables
  from entropy_attn.report.page.live import Live
  from entropy_attn.run import summary

  config = cli.load_config()
  workdir = FLAGS.workdir or pathlib.Path("runs", cli.config_name())
  processes.join()
  training = FLAGS.mode == "train"
  if training:
    options = {"accept_changed_text": FLAGS.accept_changed_text, "report": FLAGS.report}
    reached = train_lib.train(config, workdir, **options)
  else:
    reached = evaluate.evaluate_checkpoint(config, workdir, FLAGS.step)
  result = summary.read(workdir) if reached is None else summary.summarize(counts.summary(config), reached)
  if training and reached is not None and jax.process_index() == 0:
    result["private_inference"] = _private_cost(config)
    from entropy_attn.report import figures

    figures.write_run_figures(workdir)
    summary.write(workdir, result)  # last: where it lies, all the rest does
    Live(workdir, wanted=FLAGS.report).update(at_once=True)  # it reads all that
  if jax.process_index() == 0:
    cli.write_json(result)
    print(tables.run_summary(result))
  if result["status"] == "diverged" and config.train.on_nonfinite == "stop":
    print(f"diverged: {result['divergence']['text']}; the state before it is saved in {workdir}", file=sys.stderr)
    sys.exit(1)


def _private_cost(config) -> dict | None:
  """The predicted cost of a private inference; None, told, for a model that has none: its training is no less done."""
  from entropy_attn.private.price import predict

  try:
    return predict.summary_of(config)
  except UserError as error:
    say(f"note: no cost of a private inference is predicted: {error}")
    return None


if __name__ == "__main__":
  cli.run(define_flags, main)
