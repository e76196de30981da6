"""Corpora of one document a file: the interpreter's own Python sources, and any folder or glob of text."""

import collections
from collections.abc import Iterator
import functools
import hashlib
import os
import pathlib
import sys
import sysconfig

from entropy_attn import paths
from entropy_attn.data import decoding, identity, splits, walk
from entropy_attn.errors import UserError
from entropy_attn.progress import bar

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})
_OWN_FOLDERS = ("packed_text", "tokenizers")  # below data.data_dir
RULES = 2  # of what is taken and how it is split; part of the fingerprints


class FileCorpus:
  """Text files, split by file and free of duplicates: a `corpora.Corpus`.

  A file is UTF-8, or what its byte-order mark says. The first `max_files` of each split's shuffle with seed 0 are used.
  """

  def __init__(
    self,
    name: str,
    files: dict[str, pathlib.Path],
    data,
    fingerprint: str,
    left_out: collections.Counter[str] | None = None,
    named: splits.Named | None = None,
  ):
    """`files` maps the relative name, which decides order and split, to the path; `named`: the split that they say."""
    self.name = name
    self.fingerprint = fingerprint
    self.notes = [f"{name}: {named.describe()}"] if named else []
    self.left_out = left_out or collections.Counter()
    self.skipped: collections.Counter[str] = collections.Counter()
    self.mended: collections.Counter[str] = collections.Counter()
    self._files = files
    self._named = named
    self._valid_fraction = data.valid_fraction
    self._max_files = {"train": data.max_train_files, "valid": data.max_valid_files}
    self._digests: dict[str, str] = {}

  def documents(self, split: str) -> Iterator[str]:
    """The texts of "train" or "valid" in the order of their names, with a progress bar.

    Raises:
      UserError: when the split has no file, or a file cannot be read.
    """
    names = self._splits[split]
    for name in bar(names, what=f"{self.name} {split}", unit="files"):
      try:
        yield decoding.text_of(_read(self._files[name]))
      except UnicodeDecodeError as error:
        raise UserError(f"{self._files[name]} was changed while it was read: run the same command again") from error

  def files(self, split: str) -> dict[str, str]:
    """By relative name, the hash of each file's text."""
    return {name: self._digests[name] for name in self._splits[split]}

  @functools.cached_property
  def _splits(self) -> dict[str, list[str]]:
    seen: set[bytes] = set()
    kept = []
    for name in bar(sorted(self._files), what=f"{self.name}: reading", unit="files"):
      try:
        text = decoding.text_of(_read(self._files[name]))
      except UnicodeDecodeError as error:
        self.skipped[decoding.reason(error)] += 1
        continue
      digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
      if digest in seen:
        self.skipped["duplicate"] += 1
      else:
        seen.add(digest)
        kept.append(name)
        self._digests[name] = digest[:8].hex()
    return {split: self._first(split, names) for split, names in self._split(kept).items()}

  def _split(self, kept: list[str]) -> dict[str, list[str]]:
    if self._named is None:
      if len(kept) < len(("train", "valid")):
        raise UserError(self._too_few(f"{len(kept)} readable, distinct text file(s)", "at least two"))
      return splits.by_hash(kept, self._valid_fraction)
    readable = set(kept)
    found = {split: [n for n in getattr(self._named, split) if n in readable] for split in ("train", "valid")}
    for split, names in found.items():
      if not names:
        raise UserError(self._too_few(f"no readable, distinct text file for {split}", "one each"))
    return found

  def _first(self, split: str, names: list[str]) -> list[str]:
    mask = splits.chosen(len(names), self._max_files[split])
    self.skipped[f"beyond data.max_{split}_files"] += len(names) - int(mask.sum())
    return [name for name, keep in zip(names, mask, strict=True) if keep]

  def _too_few(self, found: str, needed: str) -> str:
    counts = [f"{count} file{'s' * (count != 1)}: {reason}" for reason, count in sorted(self.skipped.items())]
    foreign = any(reason.startswith("not ") for reason in self.skipped)
    remedy = "convert them with iconv -t UTF-8" if foreign else "add files, or cut the one in parts"
    reasons = f" ({'; '.join(counts)})" if counts else ""
    return f"{self.name}: {found}{reasons}: training and validation need {needed}; {remedy}"


def python_source(data) -> FileCorpus:
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
  if data.include_site_packages:
    for key in ("purelib", "platlib"):
      for name, path in _python_files(pathlib.Path(sysconfig.get_path(key)), frozenset()):
        files[f"packages/{name}"] = path
  # The interpreter's version and the sizes, not the times: equal installations share one dataset.
  sizes = [(name, size) for name, size, _ in file_state(files)]
  return FileCorpus("python_source", files, data, _fingerprint(data, sys.version.split()[0], *sizes))


def text_files(data) -> FileCorpus:
  """Every regular file below a folder, or matched by a glob; hidden files and folders are left out.

  Raises:
    UserError: when data.path is empty, missing, or holds no file.
  """
  if not data.path:
    raise UserError("data.name=text_files needs text: --config.data.path=FOLDER, or a glob such as 'books/*.txt'")
  path = paths.expand(data.path, "data.path")
  if os.path.isdir(path):
    found = walk.below(path, own_folders(data))
  elif os.path.exists(path):
    found = walk.Found({path.name: path}, collections.Counter())
  elif walk.has_magic(data.path):
    found = walk.matching(str(path), own_folders(data))
  else:
    raise UserError(f"data.path={data.path!r} does not exist: name a folder of text files, or a glob")
  if not found.files:
    left = ", ".join(f"{count} {reason}" for reason, count in sorted(found.left_out.items()))
    raise UserError(
      f"data.path={data.path!r} holds no file{f' (left out: {left})' if left else ''}: put text files there, or name "
      "another folder or glob"
    )
  named = splits.of_documents(found.files)
  left_out = found.left_out
  if named:
    splits.check_fraction_unused(data.valid_fraction, named.valid)
    left_out = left_out + collections.Counter({"of the test split": len(named.test), "of no split": len(named.other)})
  names = [*named.train, *named.valid] if named else found.files
  files = {name: found.files[name] for name in names}
  return FileCorpus("text_files", files, data, _fingerprint(data, *file_state(files)), left_out, named)


def own_folders(data) -> frozenset[str]:
  """Real paths of what is built below data.data_dir, which is no text, marked or not yet."""
  root = paths.expand(data.data_dir, "data.data_dir")
  return frozenset(os.path.realpath(root / name) for name in _OWN_FOLDERS)


def file_state(files: dict[str, pathlib.Path]) -> list[tuple[str, int, int]]:
  """(name, bytes, time of change) of each file, by name.

  Raises:
    UserError: when one is gone.
  """
  state = []
  for name in sorted(files):
    try:
      stat = files[name].stat()
    except OSError as error:
      raise UserError(_unreadable(files[name], error)) from error
    state.append((name, stat.st_size, stat.st_mtime_ns))
  return state


def _fingerprint(data, *state) -> str:
  return identity.digest_of([RULES, data.valid_fraction, data.max_train_files, data.max_valid_files, *state])


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
    raise UserError(_unreadable(path, error)) from error


def _unreadable(path: pathlib.Path, error: OSError) -> str:
  return f"{path} cannot be read ({error.strerror}): mend it, or move it out of the corpus"
