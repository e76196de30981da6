"""The Comm columns of the paper's Tables 3, 4, 7 and 8: as published, as the engine's stock program, and as ours.

    python -m entropy_attn.private.audit --workdir=runs/audit
    python -m entropy_attn.private.audit --workdir=runs/audit --run     (also runs the engine where T = 128: 1.5 hours)

Predictions are those of `cost`; engine runs are profiles recorded in --measured, and those that --run adds to WORKDIR.
"""

import pathlib

from absl import flags

from entropy_attn import cli, files, paths, published
from entropy_attn.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_path("workdir", None, "Folder for audit.json and the figures.")
  cli.define_path("measured", "benchmarks/private", "Folder of recorded profiles.")
  flags.DEFINE_bool("run", False, "Run the engine for rows of 128 tokens that have no recorded profile.")
  cli.define_json()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where it is not said where the figures go, or the folder of profiles is none."""
  if FLAGS.workdir is None:
    raise UserError("--workdir=DIR is missing: where the figures go")
  if not FLAGS["measured"].using_default_value and not FLAGS.measured.is_dir():
    raise UserError(f"--measured={FLAGS.measured} is no folder: name one with profiles of private.profile --json")


def main() -> None:
  """Compares, with engine runs first where --run asks for them; prints and saves it."""
  paths.make_folder(FLAGS.workdir, "--workdir")
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.price.audit_tables import pictures, text
  from entropy_attn.private.price.comparison import KINDS, compare, find_run, measured_runs
  from entropy_attn.run import folder

  workdir = FLAGS.workdir
  engine_runs = workdir / "runs"
  paths.make_folder(engine_runs, "the folder of runs")
  folders = [FLAGS.measured, engine_runs]
  if FLAGS.run:
    for row in (row for row in published.ROWS if row.length == 128 and row.layers == 12):
      for kind in KINDS:
        if find_run(measured_runs(folders), row, kind) is None:
          run_engine(row, kind, engine_runs)
  result = compare(measured_runs(folders))
  saved = [files.write_json(workdir / "audit.json", result), *folder.write_figures(workdir, pictures(result))]
  cli.write_json(result)
  print(text(result))
  print(f"\nsaved in {workdir}: {', '.join(path.name for path in saved)}")


def run_engine(row: published.Row, kind: str, runs: pathlib.Path) -> None:
  """Runs two layers of a row's model, and writes the profile.

  Args:
    kind: one of KINDS.
    runs: the folder that it is written to, under the row's name.

  Raises:
    UserError: for what the user can mend.
  """
  from entropy_attn.private.parties import measure
  from entropy_attn.private.price.comparison import KINDS, config_of
  from entropy_attn.private.program.spec import transforms_for
  from entropy_attn.run import pretrained

  config = config_of(row)
  print(f"running {row.model}, {kind}: two of {row.layers} layers", flush=True)
  transforms = transforms_for(config.model, KINDS[kind])
  options = {"length": row.length, "layers": 2, "offline": kind == "ours"}
  result = measure.profile(pretrained.untrained(config), transforms, **options)
  files.write_json(runs / f"{row.name}_{kind}.json", result)


if __name__ == "__main__":
  cli.run(define_flags, main)
