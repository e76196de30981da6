"""What every command does with its flags, its output and its reader."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOPS = [sys.executable, "-m", "entropy_attn.flops"]
CONFIG = "--config=configs/quickstart.py"


def run(*flags, **kwargs):
  return subprocess.run([*FLOPS, *flags], cwd=ROOT, capture_output=True, text=True, **kwargs)


def test_json_holds_what_was_printed(tmp_path):
  done = run(CONFIG, f"--json={tmp_path / 'a.json'}")
  assert done.returncode == 0 and done.stderr == ""
  assert f"{json.loads((tmp_path / 'a.json').read_text())['parameters']:,}" in done.stdout


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--config=FILE is missing"),
    ([CONFIG, "--json=no/such/folder/a.json"], "--json=no/such/folder/a.json cannot be written: No such file"),
    ([CONFIG, "train"], "unexpected argument 'train': flags have the form --name=value"),
    ([CONFIG, "--jsn=a"], "Unknown command line flag 'jsn'"),
    (["--config=configs/nowhere.py"], "--config=configs/nowhere.py cannot be loaded"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, message):
  done = run(*flags)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and message in line


def test_a_reader_that_has_enough_is_no_error():
  reading, writing = os.pipe()
  os.close(reading)
  done = subprocess.run([*FLOPS, CONFIG], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
  os.close(writing)
  assert done.returncode == 1 and done.stderr == ""
