"""Signals: the first one asks to save and stop, whatever sent it; only a second Ctrl-C interrupts the saving."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from waiting import PATIENCE

from entropy_attn import stop


def send(number):
  signal.raise_signal(number)


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_the_first_signal_is_a_request(number):
  before = signal.getsignal(number)
  with stop.StopSignal() as requested:
    assert not requested.requested
    send(number)
    assert requested.requested and requested.name == number.name
  assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", stop.SIGNALS)
@pytest.mark.parametrize("second", stop.SIGNALS)
def test_only_a_second_ctrl_c_interrupts(first, second):
  with stop.StopSignal() as requested:
    send(first)
    if second == signal.SIGINT:
      with pytest.raises(KeyboardInterrupt):
        send(second)
    else:
      send(second)
    assert requested.name == first.name


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_work_that_changes_nothing_is_interrupted_once(number):
  with stop.StopSignal() as requested:
    with pytest.raises(KeyboardInterrupt), requested.immediately():
      send(number)
    assert requested.name == number.name
    if number != signal.SIGINT:
      send(number)  # the saving goes on


def test_a_request_before_such_work_stops_it():
  with stop.StopSignal() as requested:
    send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), requested.immediately():
      raise AssertionError("never reached")


def test_nohup_is_respected():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with stop.StopSignal() as requested:
      send(signal.SIGHUP)
      assert not requested.requested
  finally:
    signal.signal(signal.SIGHUP, before)


HANGS_UP = """
import os, pathlib, sys, time
from entropy_attn import progress, stop
with stop.StopSignal() as requested:
  print("ready", flush=True)
  while not requested.requested:
    time.sleep(0.01)
  print("to nobody", flush=True)
  progress.say("nor this")
  pathlib.Path(sys.argv[1]).write_text(requested.name)
"""


def test_a_closed_terminal_ends_in_saving(tmp_path):
  """A real terminal that goes away: what is said afterwards must not end the process before it has saved."""
  saved = tmp_path / "saved"
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, "-c", "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + HANGS_UP, saved],
    stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
  )  # fmt: skip
  os.close(theirs)
  said = b""
  while b"ready" not in said:
    said += os.read(ours, 1024)
  os.close(ours)
  assert process.wait(PATIENCE) == 0
  assert saved.read_text() == "SIGHUP"
