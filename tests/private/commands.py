"""Runs the commands as a user does, and says what they need."""

import subprocess
import sys

from command_line import ROOT, environment
import pytest
from waiting import PATIENCE

needs_engine = pytest.mark.engine  # left out by conftest.py where there is no wheel of it
LINEAR = {
  "model.norm": "none", "model.activation": "identity", "model.ffn": "fused", "model.residual_scaling": True,
  "model.temperature": "per_head", "model.temperature_init": 0.5,
}  # fmt: skip


def run(module, *flags, expect=0):
  """What a command prints, on standard output and on standard error."""
  command = [sys.executable, "-m", f"entropy_attn.{module}", *map(str, flags)]
  done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
  assert done.returncode == expect, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  return done.stdout, done.stderr


def fields(overrides):
  """Flags that override fields of the config."""
  return [f"--config.{name}={value}" for name, value in overrides.items()]
