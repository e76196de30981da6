"""Paths that a user names: `~` is expanded, and a file is written whole or not at all."""

import os
import pathlib
import stat

from entropy_attn import files
from entropy_attn.errors import UserError, is_disk_full


def expand(text: str | os.PathLike, what: str) -> pathlib.Path:
  """A path with `~` and `~user` expanded.

  Args:
    text: as the user wrote it.
    what: names it in a message, such as "--workdir".

  Raises:
    UserError: for an empty text, or a home folder that nobody knows.
  """
  text = os.fspath(text)
  if not text.strip() or "\0" in text:
    raise UserError(f"{what}={text!r} names no file or folder: name one, or leave it out")
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as error:
    home = text.replace(os.sep, "/").partition("/")[0]
    mend = "set HOME, or write the whole path" if home == "~" else "there is no such user"
    raise UserError(f"{what}={text}: the home folder {home} is unknown: {mend}") from error


def check_writable(path: pathlib.Path, what: str) -> None:
  """Raises UserError where a file cannot be written: for the start of a command, not for its end."""
  folder = path.parent
  if path.is_dir():
    raise UserError(f"{what}={path} cannot be written: it is a folder: name a file")
  if not folder.is_dir():
    why = "is no folder" if folder.exists() else "does not exist"
    raise UserError(f"{what}={path} cannot be written: {folder} {why}: make it, or name another file")
  if not os.access(path if path.exists() else folder, os.W_OK):
    raise UserError(f"{what}={path} cannot be written: permission denied: name another file")


def make_folder(path: pathlib.Path, what: str) -> None:
  """Makes a folder, and those above it, where it is not there.

  Raises:
    UserError: where it cannot be made.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    why = "there is a file of that name" if path.exists() else error.strerror
    raise UserError(f"{what}={path} cannot be made: {why}: name another folder") from error


def write_text(path: pathlib.Path, text: str, what: str) -> None:
  """Writes a file whole or not at all, in UTF-8; what is no regular file, such as a pipe, is written straight.

  Raises:
    UserError: where it cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
      path.write_text(text, encoding="utf-8")
      return
    whole = pathlib.Path(os.path.realpath(path))  # a link stays a link
    try:
      files.write_bytes(whole, text.encode())
    finally:
      files.unfinished(whole).unlink(missing_ok=True)
  except OSError as error:
    mend = "free some space" if is_disk_full(error) else "name another file"
    raise UserError(f"{what}={path} cannot be written: {error.strerror or error}: {mend}") from error
