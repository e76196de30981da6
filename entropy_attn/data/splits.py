"""Which files and documents are for training, and which for validation: by their names' words, or by a hash."""

from collections.abc import Iterable
import dataclasses
import hashlib
import re

import numpy as np

from entropy_attn.data.corpora import VALID_FRACTION
from entropy_attn.errors import UserError, shorten

_WORDS = {
  "train": "train",
  "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
  "test": "test",
}  # fmt: skip
_SHOWN = 3
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Named:
  """Files that say their split.

  Attributes:
    train, valid: names.
    test: names that are never trained on.
    other: names without such a word, of files that are left out.
  """

  train: list[str]
  valid: list[str]
  test: list[str]
  other: list[str]

  def describe(self) -> str:
    """Which file became what, in a line."""
    parts = [f"{split}: {shown(getattr(self, split))}" for split in ("train", "valid") if getattr(self, split)]
    left = [f"{shown(self.test)} (test)"] * bool(self.test) + [f"{shown(self.other)} (no split)"] * bool(self.other)
    return "split by the files' names: " + "; ".join([*parts, *([f"left out: {', '.join(left)}"] if left else [])])


def word_of(name: str) -> str | None:
  """The split that a relative name says: "train", "valid", "test", or None.

  Whole words count (train; valid, validation, val, dev; test), parted by whatever is no letter or digit, in any case.
  The part of the path that is nearest to the file decides, and its first such word.
  """
  for part in reversed(name.split("/")):
    for word in re.split(r"[\W_]+", part.lower()):
      if word in _WORDS:
        return _WORDS[word]
  return None


def by_words(names: Iterable[str]) -> Named:
  """The split of files of rows: where none says that it is for training, those without a word are."""
  said: dict[str | None, list[str]] = {"train": [], "valid": [], "test": [], None: []}
  for name in names:
    said[word_of(name)].append(name)
  if said["train"]:
    return Named(said["train"], said["valid"], said["test"], said[None])
  return Named(said[None], said["valid"], said["test"], [])


def of_documents(names: Iterable[str]) -> Named | None:
  """The split of single documents, where their names mean one; else None.

  A folder of source code, too, has a 'test' folder, a train.py or a dev/: names are believed where both a training and
  a validation word occur and most files have one. The rest (a README) is then left out.
  """
  named = by_words(names)
  with_word = len(named.train) + len(named.valid) + len(named.test)
  is_said = bool(named.valid) and any(word_of(name) == "train" for name in named.train)
  return named if is_said and with_word > len(named.other) else None


def check_fraction_unused(valid_fraction: float, valid: Iterable[str]) -> None:
  """Raises UserError where the files name the validation split and data.valid_fraction asks for another."""
  if valid_fraction != VALID_FRACTION:
    raise UserError(
      f"data.valid_fraction={valid_fraction} is unused, since files are named as the validation split "
      f"({shown(list(valid))}): leave it at {VALID_FRACTION}, or rename them"
    )


def by_hash(names: Iterable[str], valid_fraction: float) -> dict[str, list[str]]:
  """Splits at least two names by a hash of each, so that a new file never moves another from one split to the other.

  Where chance leaves a split empty, the nearest name fills it.

  Returns:
    {"train": names, "valid": names}, each in the given order.
  """
  names = list(names)
  parts = {name: fraction_of(name) for name in names}
  ranked = sorted(names, key=parts.__getitem__)
  count = sum(part < valid_fraction for part in parts.values())
  held_out = set(ranked[: min(max(count, 1), len(names) - 1)])
  return {"train": [n for n in names if n not in held_out], "valid": [n for n in names if n in held_out]}


def fraction_of(text: str) -> float:
  """A hash of `text`, uniform in [0, 1), the same on every machine."""
  return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64


def chosen(count: int, most: int) -> np.ndarray:
  """bool [count]: the first `most` of a shuffle with seed 0.

  The choice is that of Hugging Face's `shuffle(seed=0).select(range(most))`.
  """
  mask = np.zeros(count, bool)
  mask[np.random.default_rng(_SEED).permutation(count)[:most]] = True
  return mask


def shown(names: list[str]) -> str:
  """The first of some names."""
  return shorten(names, _SHOWN)
