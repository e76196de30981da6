"""How many answers each client has had in the last 24 hours, counted by the server's first process.

Each client is served by a process of its own, which asks for every answer.
"""

from collections.abc import Callable
import multiprocessing
import multiprocessing.connection
import pathlib
import time

from entropy_attn import files, paths
from entropy_attn.errors import UserError
from entropy_attn.locks import Held, Lock

_HOURS = 24
_SECONDS_OF_HOUR = 3600


class Quota:
  """Counts answers by hours, so that each counts for 24 hours, or up to one more.

  Args:
    most: answers of each client in that time.
    path: of a file that keeps the counts, so that they outlive the server; None: none does.
    now: seconds since the epoch.

  Raises:
    UserError: where the file is none of ours, cannot be written, or another server counts in it.
  """

  def __init__(self, most: int, path: pathlib.Path | None = None, now: Callable[[], float] = time.time):
    self._most, self._path, self._now = most, path, now
    self._counts: dict[str, dict[str, int]] = {}  # by client and hour
    if path is not None:
      paths.check_writable(path, "--quota_file")
      self._lock = Lock(path.with_name(f"{path.name}.lock"))
      try:
        self._lock.acquire()
      except Held as held:
        raise UserError(f"--quota_file={path} is that of another server: {held}") from held
      self._counts = _read(path)

  def left(self, who: str) -> int:
    """How many answers a client may still have now."""
    self._forget()
    return max(0, self._most - sum(self._counts.get(who, {}).values()))

  def take(self, who: str) -> bool:
    """Counts one more answer of a client, unless it has had all that it may; whether it has it.

    Raises:
      OSError: where the file cannot be written; the answer is counted all the same.
    """
    if not self.left(who):
      return False
    of_client, hour = self._counts.setdefault(who, {}), str(self._hour())
    of_client[hour] = of_client.get(hour, 0) + 1
    if self._path is not None:
      files.write_json(self._path, self._counts)
    return True

  def _hour(self) -> int:
    return int(self._now() // _SECONDS_OF_HOUR)

  def _forget(self) -> None:
    """Forgets hours that are over, and clients without any other."""
    first = self._hour() - _HOURS
    kept = {who: {h: n for h, n in hours.items() if int(h) >= first} for who, hours in self._counts.items()}
    self._counts = {who: hours for who, hours in kept.items() if hours}


class Asked:
  """A `Quota` of another process, as `answer` lends it, for one client.

  Args:
    pipe: to that process.
    who: the client.
  """

  def __init__(self, pipe: multiprocessing.connection.Connection, who: str):
    self._pipe, self._who = pipe, who

  def left(self) -> int:
    """See `Quota.left`."""
    return self._ask("left")

  def take(self) -> bool:
    """See `Quota.take`."""
    return self._ask("take")

  def _ask(self, what: str):
    self._pipe.send((what, self._who))
    return self._pipe.recv()


def answer(quota: Quota, pipe: multiprocessing.connection.Connection, process, say: Callable[[str], None]) -> None:
  """Answers what a process asks of the quota, until it ends.

  Args:
    pipe: the other end of which the process has, and it alone.
    say: told where the counts cannot be kept.
  """
  while pipe in multiprocessing.connection.wait([pipe, process.sentinel]):
    try:
      what, who = pipe.recv()
    except (EOFError, OSError):
      break
    try:
      answered = quota.left(who) if what == "left" else quota.take(who)
    except OSError as error:
      say(f"--quota_file cannot be written ({error.strerror or error}): a restart will forget what is counted now")
      answered = True
    try:
      pipe.send(answered)
    except OSError:
      break


def _read(path: pathlib.Path) -> dict[str, dict[str, int]]:
  try:
    found = files.read_json(path) or {}
    return {who: {str(int(hour)): int(count) for hour, count in hours.items()} for who, hours in found.items()}
  except OSError as error:
    raise UserError(f"--quota_file={path} cannot be read: {error.strerror}") from error
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f"--quota_file={path} holds no counts of answers: name another file, or remove it") from error
