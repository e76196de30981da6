"""How a file is written: whole or not at all, and on the disk before it has its name."""

import contextlib
import json
import os
import pathlib


def unfinished(path: pathlib.Path) -> pathlib.Path:
  """What a file is called until it is whole."""
  return path.with_name(f".{path.name}.unfinished")


def finish(path: pathlib.Path) -> pathlib.Path:
  """Gives the unfinished file its name, once the disk has it: a power cut leaves the old one or the new one."""
  sync(unfinished(path))
  os.replace(unfinished(path), path)
  with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
    sync(path.parent)
  return path


def sync(path: pathlib.Path) -> None:
  """Has a file, or a folder's entries, reach the disk.

  Raises:
    OSError: where the file system cannot.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_bytes(path: pathlib.Path, content: bytes) -> pathlib.Path:
  """Writes a file; returns its path."""
  unfinished(path).write_bytes(content)
  return finish(path)


def write_json(path: pathlib.Path, value) -> pathlib.Path:
  """Writes a value as JSON; returns the path."""
  return write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: pathlib.Path) -> dict | None:
  """The object in a JSON file; None without the file.

  Raises:
    ValueError: for a file that holds none, such as one cut short.
  """
  if not path.exists():
    return None
  content = json.loads(path.read_bytes().decode())  # a UnicodeDecodeError is a ValueError too
  if not isinstance(content, dict):
    raise ValueError(f"a JSON object was expected, not {type(content).__name__}")
  return content
