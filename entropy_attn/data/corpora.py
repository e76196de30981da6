"""The corpora by name: documents of text, of which a dataset is built once."""

import collections
from collections.abc import Callable, Iterator
from typing import Protocol

from entropy_attn.data import codeparrot, text_files


class Corpus(Protocol):
  """Documents in a fixed order.

  Attributes:
    name: what the log and the dataset's folder call it.
    fingerprint: 16 hex digits that change when a document, or the split, may have changed.
    skipped: how many documents were left out, by reason; filled by the reads.
  """

  name: str
  fingerprint: str
  skipped: collections.Counter[str]

  def documents(self, split: str) -> Iterator[str]:
    """The texts of "train" or "valid", with a progress bar."""


# By data.name, each a function of config.data.
CORPORA: dict[str, Callable[..., Corpus]] = {
  "python_source": lambda data: text_files.python_source(data.include_site_packages, data.valid_fraction),
  "codeparrot": codeparrot.codeparrot,
  "text_files": lambda data: text_files.text_files(data.path, data.valid_fraction),
}
IN_PLACE = "languini"  # tokenised already, and read where it lies
NAMES = (*CORPORA, IN_PLACE)
