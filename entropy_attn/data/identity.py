"""What a run's figures depend on of its text, as plain JSON that does not depend on paths, times or the machine."""

import hashlib
import re

_SPLITS = ("train", "valid")
_MOST_FILES = 20_000  # of a split that are listed by name
_SHOWN = 3
_HASH = re.compile(r"[0-9a-f]{16}")
_FIELDS = {"corpus": "corpus", "length": "context length", "packing": "packing"}
_COUNTS = ("sequences", "tokens", "documents")


def of_split(counts: dict, digest: str, files: dict[str, str]) -> dict:
  """One split: its counts, a digest of what is read, and its files by relative name with hash or size.

  More than 20,000 files are not listed.
  """
  listed = files if len(files) <= _MOST_FILES else {}
  names = {name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"): what for name, what in listed.items()}
  return {**{name: int(counts[name]) for name in _COUNTS}, "digest": digest, "files": names}


def of_dataset(corpus: str, tokenizer: str | None, length: int, packing: str | None, splits: dict[str, dict]) -> dict:
  """The identity of a dataset.

  Args:
    corpus: its name.
    tokenizer: the tokenizer's fingerprint, where there is one.
    length: T.
    packing: how documents became sequences; None: they are read in place.
    splits: `of_split` of "train" and "valid".
  """
  return {"corpus": corpus, "tokenizer": tokenizer, "length": length, "packing": packing, **splits}


def digest_of(value) -> str:
  """16 hex digits of a value's repr."""
  return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def differences(old: dict, new: dict) -> list[str]:
  """What changed between two identities, a short line each; nothing where all tokens are the same.

  Names alone do not count: a folder that was moved, or whose files were renamed, is the same text if its tokens are.
  """
  changed = [split for split in _SPLITS if old.get(split, {}).get("digest") != new.get(split, {}).get("digest")]
  lines = []
  if changed:
    lines = [
      f"{word}: {old.get(key)} → {new.get(key)}" for key, word in _FIELDS.items() if old.get(key) != new.get(key)
    ]
  tokenizers = {identity.get("tokenizer") for identity in (old, new)} - {None}  # None: not known
  if len(tokenizers) > 1:
    lines.append("tokenizer: another one")
  for split in changed:
    lines += _of_split(split, old.get(split, {}), new.get(split, {}))
  return lines


def overlap(old: dict, new: dict) -> int:
  """How many of the new validation files were trained on by the old run, by their content; 0 where it is not known."""
  trained = {what for what in old.get("train", {}).get("files", {}).values() if _HASH.fullmatch(what)}
  return sum(what in trained for what in new.get("valid", {}).get("files", {}).values())


def _of_split(split: str, old: dict, new: dict) -> list[str]:
  before, after = old.get("files", {}), new.get("files", {})
  lines = []
  if before and after:
    kept, given = set(after.values()), set(before.values())  # a renamed file is neither added nor removed
    groups = {
      "added": [name for name in after if name not in before and after[name] not in given],
      "removed": [name for name in before if name not in after and before[name] not in kept],
      "changed": [name for name in after if name in before and after[name] != before[name]],
    }
    for word, names in groups.items():
      if names:
        more = ", …" if len(names) > _SHOWN else ""
        lines.append(f"{split}: {len(names)} file{'s' * (len(names) != 1)} {word} ({', '.join(names[:_SHOWN])}{more})")
  for what in _COUNTS:
    if old.get(what) != new.get(what):
      lines.append(f"{split}: {_count(old, what)} → {_count(new, what)} {what}")
  return lines or [f"{split}: other tokens"]


def _count(identity: dict, what: str) -> str:
  return f"{identity[what]:,}" if what in identity else "unknown"
