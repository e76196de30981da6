"""What a run says: lines for a file, bars for a terminal, and no error whatever became of standard error."""

import io
import os
import pty
import subprocess
import sys
import termios

import pytest

from entropy_attn import progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until it is set forward: clock(seconds)."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

  def forward(seconds):
    now[0] += seconds

  return forward


def test_a_bar_for_a_file_is_a_line_each_half_a_minute_and_one_at_the_end(clock, capsys):
  bar = progress.bar(what="train", unit="step", total=600, start=100)
  for step in range(101, 221):
    clock(0.5)
    bar.set_postfix_str(f"loss {step / 100:.3f}, 12,000 tokens/s")
    bar.update()
  bar.close()
  bar.close()
  assert capsys.readouterr().err.splitlines() == [
    "train: 160/600 steps, 2.0 steps/s, 3:40 left, loss 1.600, 12,000 tokens/s",
    "train: 220/600 steps, 2.0 steps/s, 3:10 left, loss 2.200, 12,000 tokens/s",  # the last, and not said twice
  ]


def test_a_quick_bar_within_another_says_nothing_and_a_slow_one_does(clock, capsys):
  with progress.bar(what="train", unit="step", total=2) as bar:
    for seconds in (1, 20):
      for _ in progress.bar([1, 2, 3], what="evaluate", unit="batch"):
        clock(seconds)
      bar.update()
  assert capsys.readouterr().err.splitlines() == [
    "evaluate: 2/3 batches, 20.0 s a batch, 0:20 left",
    "evaluate: 3/3 batches, 20.0 s a batch",
    "train: 2/2 steps, 31.5 s a step",
  ]


def test_a_bar_that_an_error_leaves_is_closed_with_it(capsys):
  with pytest.raises(KeyError), progress.bar(what="reading", unit="files") as bar:
    bar.update()
    raise KeyError
  assert progress.Lines._open == 0
  assert capsys.readouterr().err.startswith("reading: 1 files")


def test_a_bar_counts_what_has_no_length_and_passes_it_through(capsys):
  assert list(progress.bar(iter("abc"), what="reading", unit="files")) == ["a", "b", "c"]
  assert capsys.readouterr().err.startswith("reading: 3 files, ")


class Broken(io.StringIO):
  def __init__(self, error):
    super().__init__()
    self.error = error

  def write(self, *_):
    raise self.error

  flush = isatty = fileno = write


@pytest.mark.parametrize(
  "stream", [Broken(OSError(5, "EIO")), Broken(ValueError("closed")), None], ids=["hung up", "closed", "none"]
)
@pytest.mark.parametrize("watched", [False, True])
def test_nothing_is_raised_where_standard_error_is_gone(stream, watched, monkeypatch):
  monkeypatch.setattr(sys, "stderr", stream)
  monkeypatch.setattr(progress, "watched", lambda: watched)
  progress.say("x")
  with progress.bar(what="train", unit="step", total=1) as bar:
    for _ in progress.bar([1, 2], what="evaluate", unit="batch"):
      progress.say("y")
    bar.set_postfix_str("z")
    bar.update()


SCRIPT = """
import time
from entropy_attn import progress
progress.say("before")
for i in progress.bar(range(3), what="train", unit="step"):
  for _ in progress.bar(range(2), what="evaluate", unit="batch"): time.sleep(0.01)
  progress.say(f"step {i}")
"""


def test_a_file_gets_no_codes_for_a_terminal_and_no_empty_line():
  done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
  assert b"\r" not in done.stderr and b"\x1b" not in done.stderr
  lines = done.stderr.decode().splitlines()
  assert lines[:4] == ["before", "step 0", "step 1", "step 2"] and lines[4].startswith("train: 3/3 steps, ")
  assert len(lines) == 5


def test_a_terminal_gets_bars():
  parent, child = pty.openpty()
  termios.tcsetwinsize(child, (24, 80))
  subprocess.run([sys.executable, "-c", SCRIPT], stderr=child, check=True)
  os.close(child)
  assert b"\rtrain:" in os.read(parent, 65536)
  os.close(parent)
