"""Many runs → one table and its figures, beside what the paper printed.

    python -m entropy_attn.study --study=configs/studies/table3.py:small --workdir=runs/table3 --jobs=2

A study file defines `get_study(scale)`, a `Study` of `Run`s; scales are smoke (seconds a run), small (two cores, under
an hour; the default) and paper. Each run is trained by a command of its own in WORKDIR/NAME/seedN. What has finished is
not trained again, and what was interrupted goes on from its checkpoint: repeat the same command.
"""

import shlex
import signal
import sys

from absl import flags

from entropy_attn import cli, config_file
from entropy_attn.errors import UserError
from entropy_attn.study import runs

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_string("study", None, "NAME or FILE, or either with :SCALE, which is smoke, small (default) or paper.")
  cli.define_path("workdir", None, "The folder of the runs and of the table.")
  flags.DEFINE_multi_string("only", [], "Train these runs, as in --only=ereg,sm, and what they start from.")
  flags.DEFINE_integer("jobs", 1, "Runs side by side: CPUs, and a GPU's memory, are divided among them.", lower_bound=1)
  flags.DEFINE_integer("seeds", None, "Seeds of each run, in place of the study's own number.", lower_bound=1)
  flags.DEFINE_multi_string("override", [], "group.field=value for all runs, such as train.steps=1200.")
  flags.DEFINE_bool("report", True, "Write report.html as runs end, where requirements-report.txt is installed.")
  flags.DEFINE_bool("print-commands", False, "Print what would train what is missing, one command a line, and end.")
  cli.define_json()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where the study is not named."""
  if FLAGS.study is None or FLAGS.workdir is None:
    names = ", ".join(config_file.names(config_file.STUDIES))
    raise UserError(f"--study=NAME or FILE and --workdir=DIR are both needed; studies by name are {names}")


def main() -> None:
  """Trains what is missing, writes and prints the table; exits with 1 where a run went wrong."""
  workdir = FLAGS.workdir
  study = runs.with_overrides(runs.load_study(FLAGS.study), FLAGS.override)
  study = study if FLAGS.seeds is None else runs.with_seeds(study, FLAGS.seeds)
  jobs = runs.jobs(study)
  chosen = runs.chosen(jobs, [name for names in FLAGS.only for name in names.split(",") if name])
  configs = {job: runs.load_config(job, workdir) for job in jobs}
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  import jax

  from entropy_attn import files
  from entropy_attn.report.page.live import Live
  from entropy_attn.run import folder, summary
  from entropy_attn.study import execute, record, render, table

  jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: so do we
      signal.signal(number, signal.default_int_handler)
  render.check(study)
  damaged = record.check(workdir, study, configs)  # before the first hour of training, not after it
  todo = [job for job in chosen if job.name not in damaged]
  if FLAGS["print-commands"].value:
    for reason in damaged.values():
      print(f"note: {reason}", file=sys.stderr)
    _print_commands([job for job in todo if not summary.read(workdir / job.name)], workdir)
    return
  with folder.opened(workdir):
    record.write(workdir, study, configs)
    live = Live(workdir, wanted=FLAGS.report)

    def so_far(failures) -> None:
      """What there is after a run that ended: the table in numbers, and the report."""
      files.write_json(workdir / "table.json", table.collect(study, configs, workdir, damaged | failures))
      live.update()

    steps = {job.name: configs[job].train.steps for job in todo}
    try:
      failures = execute.train_all(todo, workdir, side_by_side=FLAGS.jobs, steps=steps, on_finish=so_far)
    except KeyboardInterrupt:
      print("interrupted: the same command goes on from here", file=sys.stderr)
      sys.exit(130)
    result = table.collect(study, configs, workdir, damaged | failures)
    written, all_drawn = render.write(result, workdir)
    live.update(at_once=True)  # it reads all that
  cli.write_json(result)
  print(f"\n{render.text(result)}\n\n{workdir}/: {', '.join(written)}")
  sys.exit(bool(table.went_wrong(result)) or not all_drawn)


def _print_commands(missing, workdir) -> None:
  """One command a line on standard output, for an array job; whether some must wait for others, on standard error."""
  for job in missing:
    print(shlex.join(runs.command(job, workdir)))
  names = {job.name for job in missing}
  late = [job.name for job in missing if any(other.name in names for other in job.after)]
  if late:
    print(f"note: these start from others and come after them: {', '.join(late)}", file=sys.stderr)
  if not missing:
    print("nothing is missing", file=sys.stderr)


if __name__ == "__main__":
  cli.run(define_flags, main)
