"""Corpora of one document a file: the interpreter's own Python sources, and any folder or glob of text."""

import collections
from collections.abc import Iterable, Iterator
import functools
import glob
import hashlib
import os
import pathlib
import sys
import sysconfig

from entropy_attn.errors import UserError
from entropy_attn.progress import bar

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


class FileCorpus:
  """Text files, split by file and free of duplicates.

  Attributes:
    name: what the log and the dataset's folder call it.
    fingerprint: 16 hex digits that change when a file, or the split, may have changed.
    skipped: how many files were left out, by reason; filled by the first read.
  """

  def __init__(self, name: str, files: dict[str, pathlib.Path], valid_fraction: float, fingerprint: str):
    """`files` maps the relative name, which decides order and split, to the path."""
    self.name = name
    self.fingerprint = fingerprint
    self.skipped: collections.Counter[str] = collections.Counter()
    self._files = files
    self._valid_fraction = valid_fraction

  def documents(self, split: str) -> Iterator[str]:
    """The texts of "train" or "valid" in the order of their names, with a progress bar.

    Raises:
      UserError: when the split has no file, or a file cannot be read.
    """
    names = self._splits[split]
    for name in bar(names, what=f"{self.name} {split}", unit="files"):
      yield _read(self._files[name]).decode("utf-8")

  @functools.cached_property
  def _splits(self) -> dict[str, list[str]]:
    seen: set[bytes] = set()
    kept = []
    for name in bar(sorted(self._files), what=f"{self.name}: reading", unit="files"):
      content = _read(self._files[name])
      digest = hashlib.blake2b(content, digest_size=16).digest()
      if not _is_utf8(content):
        self.skipped["not UTF-8"] += 1
      elif digest in seen:
        self.skipped["duplicate"] += 1
      else:
        seen.add(digest)
        kept.append(name)
    return split_by_name(kept, self._valid_fraction)


def split_by_name(names: Iterable[str], valid_fraction: float) -> dict[str, list[str]]:
  """Splits names by a hash of each, so that a new file never moves another from one split to the other.

  Where chance leaves a split empty, the nearest name fills it.

  Returns:
    {"train": names, "valid": names}, each in the given order.

  Raises:
    UserError: for fewer than two names.
  """
  names = list(names)
  if len(names) < len(("train", "valid")):
    raise UserError(
      f"{len(names)} readable, distinct text file(s): training and validation need at least two; "
      "add files, or cut the one in parts"
    )
  parts = {name: fraction_of(name) for name in names}
  ranked = sorted(names, key=parts.__getitem__)
  count = sum(part < valid_fraction for part in parts.values())
  held_out = set(ranked[: min(max(count, 1), len(names) - 1)])
  return {"train": [n for n in names if n not in held_out], "valid": [n for n in names if n in held_out]}


def fraction_of(text: str) -> float:
  """A hash of `text`, uniform in [0, 1), the same on every machine."""
  return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64


def python_source(include_site_packages: bool, valid_fraction: float) -> FileCorpus:
  """The .py files of the running interpreter's standard library, tests left out; with its packages, if asked.

  Raises:
    UserError: when the interpreter keeps no sources on disk.
  """
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  files = {f"stdlib/{name}": path for name, path in _python_files(library, _PACKAGE_FOLDERS)}
  if not files:
    raise UserError(
      f"python_source: {library} holds no .py file, so this interpreter has no sources to train on; "
      "use --config.data.name=text_files with --config.data.path=FOLDER"
    )
  if include_site_packages:
    for key in ("purelib", "platlib"):
      for name, path in _python_files(pathlib.Path(sysconfig.get_path(key)), frozenset()):
        files[f"packages/{name}"] = path
  # The interpreter's version and the sizes, not the times: equal installations share one dataset.
  state = [sys.version.split()[0], valid_fraction, *((name, files[name].stat().st_size) for name in sorted(files))]
  return FileCorpus("python_source", files, valid_fraction, fingerprint(state))


def text_files(path: str, valid_fraction: float) -> FileCorpus:
  """Every regular file below a folder, or matched by a glob; hidden files and folders are left out.

  Raises:
    UserError: when `path` is empty, missing, or holds no file.
  """
  if not path:
    raise UserError("data.name=text_files needs text: --config.data.path=FOLDER, or a glob such as 'books/*.txt'")
  expanded = os.path.expanduser(path)
  folder = pathlib.Path(expanded)
  if folder.is_dir():
    files = {str(p.relative_to(folder)): p for p in files_below(folder)}
  else:
    found = [pathlib.Path(p) for p in glob.glob(expanded, recursive=True) if os.path.isfile(p)]
    if not found and not glob.has_magic(expanded):
      raise UserError(f"data.path={path!r} does not exist: name a folder of text files, or a glob")
    root = os.path.commonpath([p.parent for p in found]) if found else "."
    files = {os.path.relpath(p, root): p for p in found}
  if not files:
    raise UserError(f"data.path={path!r} holds no file: put text files there, or name another folder or glob")
  state = [valid_fraction, *file_state(files)]
  return FileCorpus("text_files", files, valid_fraction, fingerprint(state))


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """The regular files below a folder, sorted, hidden ones left out."""
  found = []
  for parent, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if not name.startswith(".")]
    found += [pathlib.Path(parent, name) for name in names if not name.startswith(".")]
  return sorted(path for path in found if path.is_file())


def file_state(files: dict[str, pathlib.Path]) -> list[tuple[str, int, int]]:
  """(name, bytes, time of change) of each file, by name."""
  stats = {name: files[name].stat() for name in sorted(files)}
  return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]


def fingerprint(state) -> str:
  """16 hex digits of a value's repr."""
  return hashlib.blake2b(repr(state).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _python_files(root: pathlib.Path, without: frozenset[str]) -> Iterator[tuple[str, pathlib.Path]]:
  for parent, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _TEST_FOLDERS | without]
    for name in names:
      path = pathlib.Path(parent, name)
      if name.endswith(".py") and path.is_file():
        yield path.relative_to(root).as_posix(), path


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}): mend it, or move it out of the corpus") from error


def _is_utf8(content: bytes) -> bool:
  try:
    content.decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True
