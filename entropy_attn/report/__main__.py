"""Shows a run or a study as one HTML file, for any browser and without a network.

    python -m entropy_attn.report --workdir=runs/quickstart
    python -m entropy_attn.report --workdir=runs/quickstart --watch

It reads what was recorded so far: written again, or watched, it follows a run that goes on.
"""

from absl import flags

from entropy_attn import cli, paths
from entropy_attn.errors import UserError
from entropy_attn.report.page import extra

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_path("workdir", None, "The folder of a run or of a study.")
  cli.define_path("out", None, "The file to write; default: report.html in that folder.")
  flags.DEFINE_bool(
    "watch", False, "Serve it on this machine alone, and write it anew whenever something was recorded."
  )
  flags.DEFINE_integer("port", 0, "With --watch: the port; 0: any free one.", lower_bound=0, upper_bound=65535)
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where there is nothing to show, or nowhere to write it."""
  extra.check_installed()
  if FLAGS.workdir is None:
    raise UserError("--workdir=DIR is missing: the folder of a run or of a study")
  if not FLAGS.workdir.is_dir():
    raise UserError(f"--workdir={FLAGS.workdir} is no folder: name that of a run or of a study")
  if FLAGS.out is not None:
    paths.check_writable(FLAGS.out, "--out")
  if FLAGS["port"].present and not FLAGS.watch:
    raise UserError(f"--port={FLAGS.port} needs --watch")


def main() -> None:
  """Writes the report, and serves it where that is asked for."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  import jax

  jax.config.update("jax_platforms", "cpu")  # the accelerator is for the run
  from entropy_attn.report.page import page, watch

  path = page.write(FLAGS.workdir, FLAGS.out)
  print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, to be opened in any browser")
  if FLAGS.watch:
    watch.serve(
      FLAGS.workdir, path, FLAGS.port, on_ready=lambda url: print(f"{url} follows it; Ctrl-C ends", flush=True)
    )


if __name__ == "__main__":
  cli.run(define_flags, main)
