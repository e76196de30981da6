"""Weights for other processes of ours, in a file without a name: it goes with the last of them, however they end."""

from collections.abc import Mapping
from multiprocessing import reduction
import os
import tempfile

import numpy as np


class Unnamed:
  """Arrays by name, which a spawned process can be given as an argument.

  They are in memory where the system has files without a disk (Linux), else in a temporary file that has no name.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    if hasattr(os, "memfd_create"):
      self._file = os.fdopen(os.memfd_create("weights"), "w+b")
    else:
      self._file = tempfile.TemporaryFile()
    np.savez(self._file, **arrays)
    self._file.flush()

  def arrays(self) -> Mapping[str, np.ndarray]:
    """The arrays, each read when it is asked for; by one process at a time."""
    self._file.seek(0)
    return np.load(self._file)

  def __getstate__(self):
    return reduction.DupFd(self._file.fileno())

  def __setstate__(self, duplicate) -> None:
    self._file = os.fdopen(duplicate.detach(), "rb")
