"""One process at a time, whoever dies, on any file system; who holds it is said."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from waiting import PATIENCE

from entropy_attn import locks

_HOLD = """
import errno, os, pathlib, sys
if sys.argv[2] != "0":
  import fcntl
  def none(*args):
    raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
  fcntl.flock = none
from entropy_attn import locks
lock = locks.Lock(pathlib.Path(sys.argv[1]))
try:
  lock.acquire()
except locks.Held as held:
  print("held:", held, flush=True)
  sys.exit()
print("acquired", flush=True)
sys.stdin.read()
lock.release()
"""
# What file systems without locks say.
_WITHOUT = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture
def start(tmp_path):
  """Starts a process that tries to take the lock of a test; its first line says what came of it."""
  started = []

  def of(code=0):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "it.lock"), str(code)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[1],
    )  # fmt: skip
    started.append(process)
    return process, process.stdout.readline().strip()

  yield of
  for process in started:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("code", [0, *_WITHOUT])
def test_a_second_process_is_refused_and_told_who_holds_it(start, tmp_path, code):
  first, said = start(code)
  assert said == "acquired"
  _, said = start(code)
  assert said.startswith(f"held: process {first.pid} on {os.uname().nodename} since 20")
  first.communicate("")  # it releases
  assert start(code)[1] == "acquired"


@pytest.mark.parametrize("code", [0, *_WITHOUT])
def test_what_a_killed_process_held_is_taken_over(start, code):
  first, said = start(code)
  assert said == "acquired"
  first.send_signal(signal.SIGKILL)
  first.wait()
  assert start(code)[1] == "acquired"


def test_waiting_says_for_whom_and_goes_on(start, tmp_path):
  first, _ = start()
  lock, said = locks.Lock(tmp_path / "it.lock"), []
  waiter = threading.Thread(target=lambda: lock.acquire(waiting=said.append))
  waiter.start()
  waiter.join(0.3)
  assert waiter.is_alive()
  first.communicate("")
  waiter.join(PATIENCE)
  assert said[0].startswith(f"process {first.pid} on ")
  assert start()[1].startswith(f"held: process {os.getpid()} on ")
  lock.release()
  lock.release()  # does nothing
  assert start()[1] == "acquired"


def test_a_lock_whose_holder_cannot_be_written_down_is_free_again(tmp_path, start):
  (tmp_path / "it.lock.json").mkdir()
  lock = locks.Lock(tmp_path / "it.lock")
  with pytest.raises(OSError, match="directory"):
    lock.acquire()
  (tmp_path / "it.lock.json").rmdir()
  assert start()[1] == "acquired"
  with pytest.raises(locks.Held):
    lock.acquire()
