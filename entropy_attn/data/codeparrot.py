"""CodeParrot: Python files in the `content` column of parquet or JSON files, from the Hub or a local folder."""

import collections
from collections.abc import Iterator
import functools
import hashlib
import itertools
import os
import pathlib

import numpy as np

from entropy_attn import paths
from entropy_attn.data import decoding, hub, identity, rows, splits, text_files, walk
from entropy_attn.errors import UserError
from entropy_attn.progress import bar

TOKENIZER = "huggingface-course/code-search-net-tokenizer"  # where data.tokenizer is empty
_COLUMN = "content"
_HUB = {"train": "huggingface-course/codeparrot-ds-train", "valid": "huggingface-course/codeparrot-ds-valid"}
_MOST_HASHED = 1 << 28  # bytes; of a larger file the identity has the size


class RowCorpus:
  """Documents in rows of files: a `corpora.Corpus`.

  The first `max_files` of each split's shuffle with seed 0 are used. The choice is that of Hugging Face's
  `shuffle(seed=0).select(range(max_files))`, for files in the order of their names; the documents come in the order of
  the files, since the pipeline shuffles sequences anyway.
  """

  def __init__(self, files: dict[str, dict[str, pathlib.Path]], data, fingerprint: str):
    """`files` by name of "train" and "valid"; no "valid" files: documents are held out by a hash of their text."""
    self.name = "codeparrot"
    self.fingerprint = fingerprint
    self.notes: list[str] = []
    self.left_out: collections.Counter[str] = collections.Counter()
    self.skipped: collections.Counter[str] = collections.Counter()
    self.mended: collections.Counter[str] = collections.Counter()
    self._files = files
    self._max_files = {"train": data.max_train_files, "valid": data.max_valid_files}
    self._valid_fraction = data.valid_fraction

  def documents(self, split: str) -> Iterator[str]:
    """The chosen texts of "train" or "valid", with a progress bar; unpaired surrogates are replaced and counted.

    Raises:
      UserError: when a file cannot be read, or the split has no document.
    """
    chosen = self._chosen[split]
    self.mended[split] = 0
    with bar(total=int(chosen.sum()), what=f"codeparrot {split}", unit="files") as progress:
      for keep, text in itertools.zip_longest(chosen, self._texts(split)):
        if keep is None or text is None:
          raise UserError(f"codeparrot: the files for {split} were changed while read: run the same command again")
        if keep:
          progress.update()
          mended = decoding.without_surrogates(text)
          self.mended[split] += mended is not text
          yield mended

  def files(self, split: str) -> dict[str, str]:
    """By relative name, the hash of each file of the split; its size if it is large. None where rows are held out."""
    return {name: _content_of(path) for name, path in self._files[split].items()}

  @functools.cached_property
  def _chosen(self) -> dict[str, np.ndarray]:
    """For each split, bool [rows of its files]: the rows to use."""
    members = {"train": self._membership("train")}
    members["valid"] = self._membership("valid") if self._files["valid"] else ~members["train"]
    chosen = {}
    for split, member in members.items():
      if not member.any():
        names = list(self._files[split] or self._files["train"])
        raise UserError(
          f"codeparrot: no document for {split} in {splits.shown(names)}: add files, or files with the word 'valid' in "
          "their path for validation, or set --config.data.valid_fraction"
        )
      indices = np.flatnonzero(member)
      chosen[split] = np.zeros(len(member), bool)
      chosen[split][indices[splits.chosen(len(indices), self._max_files[split])]] = True
      self.skipped[f"beyond data.max_{split}_files"] = len(indices) - int(chosen[split].sum())
    return chosen

  def _membership(self, split: str) -> np.ndarray:
    """bool [rows of the split's files]: whether the row is of that split. One pass over the files."""
    label = f"codeparrot: counting {split}"
    reading = bar(self._texts(split), what=label, unit="files")
    if self._files["valid"]:
      return np.ones(sum(1 for _ in reading), bool)
    # By the text, so that copies of a document are on the same side.
    return np.fromiter((splits.fraction_of(text) >= self._valid_fraction for text in reading), bool)

  def _texts(self, split: str) -> Iterator[str]:
    for path in (self._files[split] or self._files["train"]).values():
      yield from rows.texts(path, _COLUMN)


def codeparrot(data) -> RowCorpus:
  """The corpus of `config.data`: the files of data.path, or those of the Hub where it is empty.

  Raises:
    UserError: when the folder is missing or holds no such file, or the Hub cannot be reached.
  """
  max_files = (data.max_train_files, data.max_valid_files)
  notes, left_out = [], collections.Counter()
  if data.path:
    found, named = _local(data)
    files = {split: {name: found.files[name] for name in getattr(named, split)} for split in ("train", "valid")}
    left_out = found.left_out + collections.Counter(
      {"of the test split": len(named.test), "of no split": len(named.other)}
    )
    if named.valid or named.test or named.other:
      notes = [f"codeparrot: {named.describe()}"]
    state = text_files.file_state(files["train"]) + text_files.file_state(files["valid"])
  else:
    folders = {split: _from_hub(repo) for split, repo in _HUB.items()}
    files = {split: walk.below(folder, wanted=rows.is_rows).files for split, folder in folders.items()}
    for split, found in files.items():
      if not found:
        raise UserError(f"the Hub's {_HUB[split]} holds none of {', '.join(rows.SUFFIXES)}: {_instead()}")
    state = [folder.name for folder in folders.values()]  # the commits
  if files["valid"]:
    splits.check_fraction_unused(data.valid_fraction, files["valid"])
  fraction = None if files["valid"] else data.valid_fraction
  corpus = RowCorpus(files, data, identity.digest_of([text_files.RULES, state, max_files, fraction]))
  corpus.notes, corpus.left_out = notes, left_out
  return corpus


def _local(data) -> tuple[walk.Found, splits.Named]:
  folder = paths.expand(data.path, "data.path")
  if not os.path.isdir(folder):
    raise UserError(f"data.path={str(folder)!r} is not a folder: {_instead()}")
  found = walk.below(folder, text_files.own_folders(data), rows.is_rows)
  if not found.files:
    raise UserError(f"data.path={str(folder)!r} holds none of {', '.join(rows.SUFFIXES)}: {_instead()}")
  named = splits.by_words(found.files)
  if not named.train:
    raise UserError(
      f"data.path={str(folder)!r}: every file has 'valid' or 'test' in its path ({splits.shown(list(found.files))}): "
      "add the files to train on"
    )
  return found, named


def _content_of(path: pathlib.Path) -> str:
  try:
    size = path.stat().st_size
    if size > _MOST_HASHED:
      return f"{size} bytes"
    with open(path, "rb") as file:
      return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}): download it again, or remove it") from error


def _from_hub(repo: str) -> pathlib.Path:
  try:
    return hub.fetch(repo, "dataset", [f"*{suffix}" for suffix in rows.SUFFIXES])
  except UserError as error:
    raise UserError(f"data.name=codeparrot: {error}: {_instead()}") from error


def _instead() -> str:
  return (
    f"put parquet or JSON-lines files with a {_COLUMN!r} column in a folder and set --config.data.path=FOLDER and "
    "--config.data.tokenizer=FILE, or train the same model today on the embedded corpus: "
    "--config.data.name=python_source"
  )
