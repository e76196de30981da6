"""The files below a folder, or of a glob: links followed, loops cut, and none of our own files among them."""

import collections
from collections.abc import Callable, Iterator
import dataclasses
import fnmatch
import os
import pathlib
import re

from entropy_attn import owned
from entropy_attn.errors import UserError

_MAGIC = re.compile(r"[*?[]")
_OF_LOCKS = (".lock.json", ".lock.soft")
_DANGLING, _TWICE, _OWN, _LOCK, _OTHER = (
  "dangling link", "linked twice", "made by entropy_attn itself", "lock file", "no regular file",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
  """Regular files.

  Attributes:
    files: relative name → path, sorted; the names decide order and split.
    left_out: how many entries were not taken, by reason; hidden ones are not counted.
  """

  files: dict[str, pathlib.Path]
  left_out: collections.Counter[str]


def below(root: pathlib.Path, own: frozenset[str] = frozenset(), wanted: Callable[[str], bool] = lambda name: True):
  """The regular files below a folder, hidden ones left out.

  Args:
    root: the folder; whether it is marked as our own does not matter.
    own: real paths of folders that are left out like marked ones.
    wanted: of a file's name; others are not counted either.

  Returns:
    `Found`, with names relative to `root`.

  Raises:
    UserError: when a folder cannot be listed.
  """
  walk = _Walk(own)
  # Folders before links to folders: what is reached both ways has the name without a link.
  pending, links, seen = [(root, False)], collections.deque(), set()
  while pending or links:
    folder, linked = pending.pop() if pending else links.popleft()
    identity = _identity(folder)
    if identity in seen:
      if linked:
        walk.left_out[folder] = _TWICE
      continue
    seen.add(identity)
    for entry in walk.entries(folder):
      path = pathlib.Path(entry.path)
      if entry.is_dir():
        if walk.is_own(path):
          walk.left_out[path] = _OWN
        elif entry.is_symlink():
          links.append((path, True))
        else:
          pending.append((path, False))
      elif wanted(entry.name):
        walk.take(entry)
  return walk.found(lambda path: path.relative_to(root).as_posix())


def matching(pattern: str, own: frozenset[str] = frozenset()) -> Found:
  """The regular files that a glob matches; hidden ones only where the pattern says their dot.

  A part of the pattern that exists as it is written is taken as it is: folders may have brackets in their names.

  Returns:
    `Found`, with names relative to the folder that is common to all.

  Raises:
    UserError: when a folder cannot be listed.
  """
  parts = pathlib.PurePath(pattern).parts
  root = pathlib.Path(parts[0]) if pathlib.PurePath(pattern).is_absolute() else pathlib.Path()
  parts = parts[1:] if root.parts else parts
  while len(parts) > 1 and (not _MAGIC.search(parts[0]) or os.path.exists(root / parts[0])):
    root, parts = root / parts[0], parts[1:]
  walk = _Walk(own)
  if root.is_dir():
    walk.match(root, parts, set())
  parents = [path.parent for path in walk.files]
  common = os.path.commonpath(parents) if parents else "."
  return walk.found(lambda path: pathlib.PurePath(os.path.relpath(path, common)).as_posix())


def has_magic(pattern: str) -> bool:
  """Whether a path can be meant as a glob."""
  return bool(_MAGIC.search(pattern))


class _Walk:
  """What was found and what was left out, by path: to come by twice changes nothing."""

  def __init__(self, own: frozenset[str]):
    self._own = own
    self.files: dict[pathlib.Path, bool] = {}  # whether it is a link
    self.left_out: dict[pathlib.Path, str] = {}

  def entries(self, folder: pathlib.Path, hidden: bool = False) -> list[os.DirEntry]:
    try:
      with os.scandir(folder or ".") as found:
        entries = sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
      raise UserError(f"{folder} cannot be listed ({error.strerror}): mend it, or move it out of the text") from error
    return [entry for entry in entries if hidden or not entry.name.startswith(".")]

  def is_own(self, folder: pathlib.Path) -> bool:
    return owned.is_marked(folder) or (bool(self._own) and os.path.realpath(folder) in self._own)

  def take(self, entry: os.DirEntry) -> None:
    path = pathlib.Path(entry.path)
    if not path.exists():
      self.left_out[path] = _DANGLING
    elif not entry.is_file():
      self.left_out[path] = _OTHER
    elif entry.name.endswith(_OF_LOCKS) or (entry.name.endswith(".lock") and not entry.stat().st_size):
      self.left_out[path] = _LOCK
    else:
      self.files[path] = entry.is_symlink()

  def match(self, folder: pathlib.Path, parts: tuple[str, ...], seen: set) -> None:
    state = (_identity(folder), len(parts))
    if state in seen:  # a loop of links, or a second way
      return
    seen.add(state)
    first, rest = parts[0], parts[1:]
    if first == "**":
      if rest:
        self.match(folder, rest, seen)
      for entry in self.entries(folder):
        if entry.is_dir():
          self._enter(entry, parts, seen)
        elif not rest:
          self.take(entry)
      return
    matches = re.compile(fnmatch.translate(first)).match
    for entry in self.entries(folder, hidden=first.startswith(".")):
      if entry.name == first or matches(entry.name):
        if rest and entry.is_dir():
          self._enter(entry, rest, seen)
        elif not rest and not entry.is_dir():
          self.take(entry)

  def _enter(self, entry: os.DirEntry, parts: tuple[str, ...], seen: set) -> None:
    path = pathlib.Path(entry.path)
    if self.is_own(path):
      self.left_out[path] = _OWN
    else:
      self.match(path, parts, seen)

  def found(self, name: Callable[[pathlib.Path], str]) -> Found:
    """What is left when of each real file one name is kept, one that is no link if there is."""
    kept: dict[tuple[int, int], pathlib.Path] = {}
    for path in self._links_last():
      if self.files[path] and _identity(path) in kept:
        self.left_out[path] = _TWICE
      else:
        kept[_identity(path)] = path
    files = {name(path): path for path in self.files if self.left_out.get(path) != _TWICE}
    return Found(dict(sorted(files.items())), collections.Counter(self.left_out.values()))

  def _links_last(self) -> Iterator[pathlib.Path]:
    yield from sorted(self.files, key=lambda path: (self.files[path], path))


def _identity(path: pathlib.Path) -> tuple[int, int]:
  try:
    stat = path.stat()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}): mend it, or move it out of the text") from error
  return stat.st_dev, stat.st_ino
