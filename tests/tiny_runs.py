"""A model that trains in a second: whole runs of the command as users start them, and their metrics."""

import json
import os
import pathlib
import subprocess
import sys

from waiting import PATIENCE

ROOT = pathlib.Path(__file__).parents[1]

STEPS = 24
TINY = {
  "model.num_layers": 2, "model.num_heads": 2, "model.d_model": 16, "model.context_length": 16,
  "model.max_positions": 16, "model.vocab_size": 300, "train.steps": STEPS, "train.batch_size": 8,
  "train.log_every": 1, "train.checkpoint_every": 8, "eval.every": 10, "eval.batch_size": 8, "eval.batches": 3,
  "data.name": "text_files",
}  # fmt: skip


def lines(workdir, kind="train"):
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [record for record in records if record["kind"] == kind]


def command(workdir, overrides, *flags, config="configs/quickstart.py"):
  fields = [f"--config.{name}={value}" for name, value in (TINY | overrides).items()]
  main = [sys.executable, "-m", "entropy_attn.main", "--noreport"]  # seconds of each run that no test needs
  return [*main, f"--config={config}", f"--workdir={workdir}", *fields, *flags]


def popen(arguments):
  env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(arguments, cwd=ROOT, env=env, **pipes)


def finish(process, expect=0):
  out, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == expect, out + err
  assert "Traceback" not in err
  return out, err


def run(workdir, overrides, *flags, expect=0, **kwargs):
  return finish(popen(command(workdir, overrides, *flags, **kwargs)), expect)
