"""CodeParrot: Python files in the `content` column of parquet or JSON files, from the Hub or a local folder."""

import collections
from collections.abc import Iterator
import functools
import pathlib

import numpy as np

from entropy_attn.data import hub, rows, text_files
from entropy_attn.errors import UserError
from entropy_attn.progress import bar

_COLUMN = "content"
_HUB = {"train": "huggingface-course/codeparrot-ds-train", "valid": "huggingface-course/codeparrot-ds-valid"}
_SEED = 0


class RowCorpus:
  """Documents in rows of files; the first `max_files` of each split's shuffle with seed 0 are used.

  The choice is that of Hugging Face's `shuffle(seed=0).select(range(max_files))`, for files in the order of their
  names; the documents come in the order of the files, since the pipeline shuffles sequences anyway.

  Attributes:
    name: what the log and the dataset's folder call it.
    fingerprint: 16 hex digits that change when a file, the split or the choice may have changed.
    skipped: how many documents were left out, by reason; filled by the reads.
  """

  def __init__(
    self,
    files: dict[str, list[pathlib.Path]],
    max_files: dict[str, int],
    valid_fraction: float,
    fingerprint: str,
  ):
    """`files` of "train" and "valid"; no "valid" files: documents are held out by a hash of their text."""
    self.name = "codeparrot"
    self.skipped: collections.Counter[str] = collections.Counter()
    self.fingerprint = fingerprint
    self._files = files
    self._max_files = max_files
    self._valid_fraction = valid_fraction

  def documents(self, split: str) -> Iterator[str]:
    """The chosen texts of "train" or "valid", with a progress bar.

    Raises:
      UserError: when a file cannot be read, or the split has no document.
    """
    chosen = self._chosen[split]
    progress = bar(total=int(chosen.sum()), what=f"codeparrot {split}", unit="files")
    with progress:
      for keep, text in zip(chosen, self._texts(split), strict=True):
        if keep:
          progress.update()
          yield text

  @functools.cached_property
  def _chosen(self) -> dict[str, np.ndarray]:
    """For each split, bool [rows of its files]: the rows to use."""
    members = {"train": self._membership("train")}
    members["valid"] = self._membership("valid") if self._files["valid"] else ~members["train"]
    chosen = {}
    for split, member in members.items():
      if not member.any():
        raise UserError(
          f"codeparrot: no document for {split} in {self._files[split] or self._files['train']}: add files, or files "
          "with 'valid' in their path for validation, or set --config.data.valid_fraction"
        )
      indices = np.flatnonzero(member)
      order = np.random.default_rng(_SEED).permutation(len(indices))
      chosen[split] = np.zeros(len(member), bool)
      chosen[split][indices[order[: self._max_files[split]]]] = True
      self.skipped[f"beyond data.max_{split}_files"] = len(indices) - int(chosen[split].sum())
    return chosen

  def _membership(self, split: str) -> np.ndarray:
    """bool [rows of the split's files]: whether the row is of that split. One pass over the files."""
    label = f"codeparrot: counting {split}"
    reading = bar(self._texts(split), what=label, unit="files")
    if self._files["valid"]:
      return np.ones(sum(1 for _ in reading), bool)
    # By the text, so that copies of a document are on the same side.
    return np.fromiter((text_files.fraction_of(text) >= self._valid_fraction for text in reading), bool)

  def _texts(self, split: str) -> Iterator[str]:
    for path in self._files[split] or self._files["train"]:
      yield from rows.texts(path, _COLUMN)


def codeparrot(data) -> RowCorpus:
  """The corpus of `config.data`: the files of data.path, or those of the Hub where it is empty.

  Raises:
    UserError: without data.tokenizer; when the folder is missing or holds no such file, or the Hub cannot be reached.
  """
  if not data.tokenizer:
    raise UserError(
      "codeparrot needs a tokenizer: --config.data.tokenizer=huggingface-course/code-search-net-tokenizer, or a file"
    )
  max_files = {"train": data.max_train_files, "valid": data.max_valid_files}
  if data.path:
    folder = pathlib.Path(data.path).expanduser()
    files = _local(folder)
    state = text_files.file_state({str(p.relative_to(folder)): p for paths in files.values() for p in paths})
  else:
    folders = {split: _from_hub(repo) for split, repo in _HUB.items()}
    files = {split: _rows_below(folder) for split, folder in folders.items()}
    for split, paths in files.items():
      if not paths:
        raise UserError(f"the Hub's {_HUB[split]} holds none of {', '.join(rows.SUFFIXES)}: {_instead()}")
    state = [folder.name for folder in folders.values()]  # the commits
  fraction = None if files["valid"] else data.valid_fraction
  return RowCorpus(files, max_files, data.valid_fraction, text_files.fingerprint([state, max_files, fraction]))


def _local(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  if not folder.is_dir():
    raise UserError(f"data.path={str(folder)!r} is not a folder: {_instead()}")
  found = _rows_below(folder)
  if not found:
    raise UserError(f"data.path={str(folder)!r} holds none of {', '.join(rows.SUFFIXES)}: {_instead()}")
  is_valid = {path: "valid" in path.relative_to(folder).as_posix().lower() for path in found}
  files = {"train": [p for p in found if not is_valid[p]], "valid": [p for p in found if is_valid[p]]}
  if not files["train"]:
    raise UserError(f"data.path={str(folder)!r}: every file has 'valid' in its path: add the files to train on")
  return files


def _rows_below(folder: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in text_files.files_below(folder) if rows.is_rows(path.name)]


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
