"""Folders that this package made (runs, studies, datasets) are marked, so that nobody takes their files for text."""

import contextlib
import os
import pathlib

_MARK = ".made_by_entropy_attn"
_NOTE = "The files of this folder are entropy_attn's own: it never reads them as text to train on.\n"


def mark(folder: pathlib.Path) -> None:
  """Marks a folder, as far as it can be written."""
  path = folder / _MARK
  with contextlib.suppress(OSError):
    if not path.exists():
      path.write_text(_NOTE)


def is_marked(folder: pathlib.Path) -> bool:
  """Whether a folder was marked."""
  return os.path.exists(folder / _MARK)
