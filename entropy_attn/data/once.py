"""What is built once and kept: by one process at a time, whole or not at all."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import pathlib
import shutil

from absl import logging

from entropy_attn import owned
from entropy_attn.errors import UserError, is_disk_full
from entropy_attn.locks import Lock

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def once(path: pathlib.Path, make: Callable[[], None], own: pathlib.Path) -> None:
  """Calls make(), which creates `path` by a rename, unless it exists; one process at a time.

  Args:
    path: what is made.
    make: makes it.
    own: a folder at or above that of `path`, which is marked as ours: its files are no text.

  Raises:
    UserError: when the folder of `path` cannot be written, or the disk is full.
  """
  if path.exists():
    owned.mark(own)
    return
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    owned.mark(own)
    with _locked(path.parent / ".lock", path):
      if path.exists():
        return
      for leftover in path.parent.glob("incomplete.*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
      make()
  except (OSError, RuntimeError) as error:  # the record writer reports a full disk as RuntimeError
    if is_disk_full(error):
      raise UserError(
        f"no space left for {path}: free some, or build elsewhere with --config.data.data_dir=FOLDER"
      ) from error
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
      raise UserError(
        f"{path} cannot be written ({error.strerror}): choose a folder with --config.data.data_dir=FOLDER"
      ) from error
    raise


@contextlib.contextmanager
def _locked(path: pathlib.Path, what: pathlib.Path) -> Iterator[None]:
  lock = Lock(path)
  lock.acquire(waiting=lambda holder: logging.warning("%s is making %s: waiting for it", holder, what))
  try:
    yield
  finally:
    lock.release()
