"""The corpora by name, what each reads of the config, and what all of them are. Light: the config imports it."""

import collections
from collections.abc import Iterator
from typing import Protocol


class Corpus(Protocol):
  """Documents in a fixed order.

  Attributes:
    name: what the log and the dataset's folder call it.
    fingerprint: 16 hex digits that change when a document, or the split, may have changed.
    notes: lines for the user, such as which file became which split.
    left_out: how many files were not taken, by reason; known at once.
    skipped: how many documents were left out, by reason; filled by the reads.
    mended: how many documents of each split had characters replaced; filled by the reads.
  """

  name: str
  fingerprint: str
  notes: list[str]
  left_out: collections.Counter[str]
  skipped: collections.Counter[str]
  mended: collections.Counter[str]

  def documents(self, split: str) -> Iterator[str]:
    """The texts of "train" or "valid", with a progress bar."""

  def files(self, split: str) -> dict[str, str]:
    """The files behind a split: by relative name the hash of the content, or the size; after its documents."""


IN_PLACE = "languini"  # tokenised already, and read where it lies
_COMMON = {"name", "data_dir"}  # data_dir changes no figure: a corpus that builds nothing may be given one
_BUILT = _COMMON | {"tokenizer", "packing", "max_train_files", "max_valid_files", "valid_fraction"}
# The fields of config.data that each corpus reads, by data.name.
READS: dict[str, frozenset[str]] = {
  "python_source": frozenset(_BUILT | {"include_site_packages"}),
  "codeparrot": frozenset(_BUILT | {"path"}),
  "text_files": frozenset(_BUILT | {"path"}),
  IN_PLACE: frozenset(_COMMON | {"path", "tokenizer", "eval_split"}),
}
NAMES = tuple(READS)
# The default of data.valid_fraction: another one is refused where files name the validation split themselves.
VALID_FRACTION = 0.05
