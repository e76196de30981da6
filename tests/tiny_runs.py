"""A model that trains in a second: whole runs of the command as users start them, and their metrics."""

import json
import subprocess
import sys

from command_line import ROOT, environment
import numpy as np
from trees import assert_equal
from waiting import PATIENCE

STEPS = 24
TINY = {
  "model.num_layers": 2, "model.num_heads": 2, "model.d_model": 16, "model.context_length": 16,
  "model.max_positions": 16, "model.vocab_size": 300, "train.steps": STEPS, "train.batch_size": 8,
  "train.log_every": 1, "train.checkpoint_every": 8, "eval.every": 10, "eval.batch_size": 8, "eval.batches": 3,
  "data.name": "text_files",
}  # fmt: skip
# The command, in which a signal arrives at a step of our choice: from outside it would depend on who is faster.
INTERRUPTED = """
import signal
from entropy_attn import cli, main, reporter

add = reporter.Reporter.add

def add_and_interrupt(self, step, metrics):
  add(self, step, metrics)
  if step == {step}:
    signal.raise_signal(signal.{number})

reporter.Reporter.add = add_and_interrupt
cli.run(main.define_flags, main.main)
"""


def lines(workdir, kind="train"):
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [record for record in records if record["kind"] == kind]


def command(workdir, overrides, *flags, config="configs/quickstart.py"):
  fields = [f"--config.{name}={value}" for name, value in (TINY | overrides).items()]
  main = [sys.executable, "-m", "entropy_attn.main", "--noreport"]  # seconds of each run that no test needs
  return [*main, f"--config={config}", f"--workdir={workdir}", *fields, *flags]


def interrupted(arguments, step, number="SIGTERM"):
  """The same command, to which a signal comes when it has recorded a step."""
  assert arguments[1] == "-m"
  return [arguments[0], "-c", INTERRUPTED.format(step=step, number=number), *arguments[3:]]


def popen(arguments):
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(arguments, cwd=ROOT, env=environment(), **pipes)


def finish(process, expect=0):
  out, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == expect, out + err
  assert "Traceback" not in err
  return out, err


def run(workdir, overrides, *flags, expect=0, **kwargs):
  return finish(popen(command(workdir, overrides, *flags, **kwargs)), expect)


def arrays(step, *workdirs):
  """Of each run every array of a checkpoint, by its path, read without this project."""
  code = (
    "import sys, numpy as np, jax, orbax.checkpoint as ocp\n"
    "for path, target in zip(sys.argv[1::2], sys.argv[2::2]):\n"
    "  tree = ocp.StandardCheckpointer().restore(path)\n"
    "  flat = jax.tree_util.tree_leaves_with_path(tree)\n"
    "  np.savez(target, **{jax.tree_util.keystr(p): np.asarray(x) for p, x in flat})\n"
  )
  targets = [workdir / f"{step}.npz" for workdir in workdirs]
  paths = [(workdir / "checkpoints" / str(step) / "state").resolve() for workdir in workdirs]
  pairs = [argument for pair in zip(paths, targets, strict=True) for argument in pair]
  subprocess.run([sys.executable, "-W", "ignore", "-c", code, *pairs], check=True, capture_output=True)
  return [dict(np.load(target)) for target in targets]


def assert_same(found, expected):
  """Two finished runs: every array of the last checkpoint bit for bit, and every record but for its speed."""
  assert_equal(*arrays(STEPS, found, expected))
  timeless = lambda records: [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records]
  for kind in ("train", "eval"):
    assert timeless(lines(found, kind)) == timeless(lines(expected, kind))
