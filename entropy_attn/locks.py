"""A lock that one process at a time holds, and that says who: also on file systems without locks."""

from collections.abc import Callable
import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import warnings

import filelock

_SECONDS_TO_TAKE_OVER = 0.5  # without locks: to see that a holder is dead, to remove its file, and to try again
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class Held(Exception):
  """Another process holds the lock; its text says which, and since when."""


class Lock:
  """A lock on a file's path, taken by `acquire`.

  The system frees it when its process dies, however it dies. Where the file system has no locks, a file that names the
  process takes its place; one that a dead process of this host left behind is taken over.
  """

  def __init__(self, path: pathlib.Path):
    self._path, self._lock = path, None
    self._holder = path.with_name(f"{path.name}.json")

  def acquire(self, waiting: Callable[[str], None] | None = None) -> None:
    """Takes the lock.

    Args:
      waiting: called once with who holds it, where it must be waited for; None: not to wait.

    Raises:
      Held: where another process holds it, unless it is waited for.
      OSError: where its files cannot be written.
    """
    try:
      self._lock = self._try()
    except filelock.Timeout:
      if waiting is None:
        raise Held(self._describe_holder()) from None
      waiting(self._describe_holder())
      self._lock = self._try(timeout=-1)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    try:
      self._holder.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": now}) + "\n")
    except OSError:  # such as a full disk
      self.release()
      raise

  def release(self) -> None:
    """Frees the lock."""
    if self._lock is not None:
      with contextlib.suppress(OSError):
        self._holder.unlink()
      with contextlib.suppress(OSError):  # the system frees it with the process
        self._lock.release()
      self._lock = None

  def _try(self, timeout: float = 0):
    try:
      lock = filelock.FileLock(self._path)
      with warnings.catch_warnings():  # of a system without flock, where the library itself takes a file
        warnings.simplefilter("ignore")
        lock.acquire(timeout=timeout)
    except OSError as error:
      if isinstance(error, filelock.Timeout) or error.errno not in _NO_LOCKS:
        raise
      lock = filelock.SoftFileLock(self._path.with_name(f"{self._path.name}.soft"))
      lock.acquire(timeout=timeout or _SECONDS_TO_TAKE_OVER)
    return lock

  def _describe_holder(self) -> str:
    try:
      holder = json.loads(self._holder.read_text())
      return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or gone this moment
      return "another process"
