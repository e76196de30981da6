"""One run in several processes: their flags, and how they find each other."""

import re

from absl import flags

from entropy_attn import cli
from entropy_attn.errors import UserError

FLAGS = flags.FLAGS
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
  alone = num_processes == 1 and process_id in (None, 0)  # one process needs no number
  if missing and not (alone and coordinator is not None):
    raise UserError(f"{first} needs {' and '.join(missing)}, too; on TPU and Slurm --multihost alone is enough")
  port = re.fullmatch(r"(?:[^:\s]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", coordinator)
  if not port or not 0 < int(port[1]) < 2**16:
    raise UserError(f"--coordinator={coordinator} must be host:port of process 0, such as 10.0.0.1:9800")
  if num_processes < 1:
    raise UserError(f"--num_processes={num_processes} must be at least 1")
  if process_id is not None and not 0 <= process_id < num_processes:
    raise UserError(f"--process_id={process_id} must be from 0 to {num_processes - 1}, with {num_processes} processes")


def join() -> None:
  """Waits for the other processes, with --multihost.

  Raises:
    UserError: where they do not find each other.
  """
  if not FLAGS.multihost:
    return
  import jax

  settings = [FLAGS[name].value for name in _NAMES]
  try:
    jax.distributed.initialize(*settings)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:300]
    if settings[0] is None:
      mend = "give --coordinator=HOST:PORT, --num_processes and --process_id"
    else:
      mend = f"start all {settings[1]} processes, with --coordinator={settings[0]}, an address of process 0 they reach"
    raise UserError(f"--multihost: the processes do not find each other: {mend} ({reason})") from error
