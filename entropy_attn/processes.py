"""One run in several processes: their flags, and how they find each other."""

import contextlib
import os
import re
import socket
import sys
import threading

from absl import flags

from entropy_attn import cli
from entropy_attn.errors import UserError, one_line

FLAGS = flags.FLAGS
PATIENCE = 300  # seconds for all to come
_NAMES = ("coordinator", "num_processes", "process_id")


def define_flags() -> None:
  """Defines --multihost, --coordinator, --num_processes and --process_id, for `join`."""
  flags.DEFINE_bool("multihost", False, "One of several processes; on TPU and Slurm they find each other.")
  flags.DEFINE_string("coordinator", None, "With --multihost elsewhere: host:port of process 0.")
  flags.DEFINE_integer("num_processes", None, "With --coordinator.")
  flags.DEFINE_integer("process_id", None, "With --coordinator: from 0 to num_processes − 1.")
  cli.add_check(lambda: check(FLAGS.multihost, *(FLAGS[name].value for name in _NAMES)))


def check(multihost: bool, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Raises UserError for settings that are incomplete or do not fit together."""
  given = dict(zip(_NAMES, (coordinator, num_processes, process_id), strict=True))
  missing = [f"--{name}" for name in _NAMES if given[name] is None]
  first = next((f"--{name}={value}" for name, value in given.items() if value is not None), None)
  if first is None:
    return
  if not multihost:
    raise UserError(f"{first} is for one of several processes: add --multihost, or leave it out")
  if missing:
    raise UserError(f"{first} needs {' and '.join(missing)}, too; on TPU and Slurm --multihost alone is enough")
  port = re.fullmatch(r"(?:[^:\s]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", coordinator)
  if not port or not 0 < int(port[1]) < 2**16:
    raise UserError(f"--coordinator={coordinator} must be host:port of process 0, such as 10.0.0.1:9800")
  if num_processes < 1:
    raise UserError(f"--num_processes={num_processes} must be at least 1")
  if not 0 <= process_id < num_processes:
    raise UserError(f"--process_id={process_id} must be from 0 to {num_processes - 1}, with {num_processes} processes")


def join() -> None:
  """Waits for the other processes, with --multihost.

  Raises:
    UserError: where they do not find each other.
  """
  if not FLAGS.multihost:
    return
  import jax

  coordinator, count, index = (FLAGS[name].value for name in _NAMES)
  if coordinator is None:
    mend = "give --coordinator=HOST:PORT, --num_processes and --process_id"
  elif index == 0:
    _check_port(int(coordinator.rpartition(":")[2]))
    mend = f"start all {count} with --coordinator={coordinator}, an address of this machine that the others reach"
  else:
    mend = f"start process 0 where --coordinator={coordinator} says"
  with _no_longer_than(PATIENCE, f"--multihost: nobody answered for {PATIENCE} seconds: {mend}"):
    try:
      jax.distributed.initialize(coordinator, count, index, initialization_timeout=2 * PATIENCE)
    except (RuntimeError, ValueError) as error:
      reason = one_line(error)
      raise UserError(f"--multihost: the processes do not find each other: {mend} ({reason})") from error


def _check_port(port: int) -> None:
  """Raises UserError where this process cannot listen on a port: JAX itself would abort it, with a stack trace."""
  try:
    socket.create_server(("", port)).close()
  except OSError as error:
    why = os.strerror(error.errno)
    raise UserError(f"--coordinator: process 0 cannot listen on port {port}: {why}: choose another for all") from error


@contextlib.contextmanager
def _no_longer_than(seconds: float, otherwise: str):
  """Ends the process with one line where the body takes too long, before JAX aborts it."""
  done = threading.Event()

  def watch() -> None:
    if not done.wait(seconds):
      with contextlib.suppress(OSError):
        print(f"error: {otherwise}", file=sys.stderr, flush=True)
      os._exit(2)

  threading.Thread(target=watch, name="patience", daemon=True).start()
  try:
    yield
  finally:
    done.set()
