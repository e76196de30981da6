"""Many runs → one table and one figure.

    python -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare [--json=FILE] [--only=NAME,…]

A study file defines `get_study()`, a list of `Run`. Each run is trained by a command of its own in WORKDIR/NAME. What
has finished is not trained again, and what was interrupted goes on from its checkpoint: repeat the same command.
"""

import signal
import sys

from absl import flags

from entropy_attn import cli
from entropy_attn.errors import UserError
from entropy_attn.study import runs

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_path("study", None, "A file that defines get_study(), as under configs/studies/.")
  cli.define_path("workdir", None, "The folder of the runs, one folder each, and of the table.")
  flags.DEFINE_list("only", [], "Train these runs only; the table shows what the others have.")
  cli.define_json()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where the study is not named."""
  if FLAGS.study is None or FLAGS.workdir is None:
    raise UserError("--study=FILE and --workdir=DIR are both needed; configs/studies/ holds studies ready to use")


def main() -> None:
  """Trains what is missing, writes and prints the table; exits with 1 where a run went wrong."""
  study = runs.load_study(FLAGS.study)
  chosen = runs.chosen(study, FLAGS.only)
  configs = {run.name: runs.load_config(run) for run in study}
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  import jax

  from entropy_attn.run import folder
  from entropy_attn.study import execute, table

  jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: so do we
      signal.signal(number, signal.default_int_handler)
  workdir = FLAGS.workdir
  for name, config in configs.items():  # before the first hour of training, not after it
    folder.check_same_run(workdir / name, config)
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
