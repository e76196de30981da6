"""Trains or evaluates a model.

    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart --mode=eval

Fields are overridden by flags such as --config.train.steps=1000.
"""

import pathlib
import sys

from absl import flags
import jax

from entropy_attn import cli, evaluate, summary
from entropy_attn import train as train_lib
from entropy_attn.private import cost
from entropy_attn.report import figures

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder; one that holds the same run is resumed. Default: runs/ and the config's name."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the run's checkpoint.")
_STEP = flags.DEFINE_integer("step", None, "With --mode=eval: the checkpoint of this step; default: the newest.")
_JSON = flags.DEFINE_string("json", None, "Also write the printed figures to this file.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several processes; on TPU and Slurm they find each other.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "With --multihost elsewhere: host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")


def main() -> None:
  """Runs the mode that the flags ask for."""
  config = cli.load_config(_CONFIG)
  workdir = pathlib.Path(_WORKDIR.value or f"runs/{cli.config_name()}")
  if _MULTIHOST.value:
    jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if _MODE.value == "eval":
    result = evaluate.evaluate_checkpoint(config, workdir, _STEP.value)
  else:
    try:
      result = train_lib.train(config, workdir)
    except train_lib.Diverged as error:
      print(f"diverged: {error}", file=sys.stderr)
      sys.exit(1)
  if jax.process_index() == 0:
    if _MODE.value == "train":
      figures.write_run_figures(workdir)
      result = cost.add_to_summary(workdir, config, result)
    cli.write_json(_JSON.value, result)
    print(summary.table(result))


if __name__ == "__main__":
  cli.run(main)
