"""Many runs → one table and one figure.

    python -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare [--json=FILE] [--only=NAME,…]

A study file defines `get_study()`, a list of `Run`. Each run is trained by a command of its own in WORKDIR/NAME. What
has finished is not trained again, and what was interrupted goes on from its checkpoint: repeat the same command.
"""

import pathlib
import signal
import sys

from absl import flags
import jax

from entropy_attn import cli
from entropy_attn.errors import UserError
from entropy_attn.run import folder
from entropy_attn.study import execute, runs, table

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_string("study", None, "A file that defines get_study(), as under configs/studies/.")
  flags.DEFINE_string("workdir", None, "The folder of the runs, one folder each, and of the table.")
  flags.DEFINE_list("only", [], "Train these runs only; the table shows what the others have.")
  cli.define_json()


def main() -> None:
  """Trains what is missing, writes and prints the table; exits with 1 where a run went wrong."""
  if not FLAGS.study or not FLAGS.workdir:
    raise UserError("--study=FILE and --workdir=DIR are both needed; configs/studies/ holds studies ready to use")
  jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: so do we
      signal.signal(number, signal.default_int_handler)
  workdir = pathlib.Path(FLAGS.workdir)
  study = runs.load_study(FLAGS.study)
  chosen = runs.chosen(study, FLAGS.only)
  for run in study:  # before the first hour of training, not after it
    folder.check_same_run(workdir / run.name, runs.load_config(run))
  with folder.opened(workdir):
    try:
      failures = execute.train_all(chosen, workdir)
    except KeyboardInterrupt:
      print("interrupted: the same command goes on from here", file=sys.stderr)
      sys.exit(130)
    result = table.collect(study, workdir, failures)
    written = table.write(result, workdir)
  cli.write_json(result)
  print(f"\n{table.text(result)}\n\n{workdir}/: {', '.join(written)}")
  sys.exit(bool(table.went_wrong(result)))


if __name__ == "__main__":
  cli.run(define_flags, main)
