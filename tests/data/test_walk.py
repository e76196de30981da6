"""Walks and globs: links followed once, loops cut, everything that is left out counted."""

import glob
import os
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from entropy_attn import locks, owned
from entropy_attn.data import pipeline, walk
from entropy_attn.errors import UserError
from tests.data.small_configs import of_files


def _write(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(name)


def _texts(found):
  return {name: path.read_text() for name, path in found.files.items()}


def test_links_to_folders_are_followed_and_loops_cut(tmp_path):
  root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
  _write(root, "a.txt", "z/b.txt")
  _write(elsewhere, "c.txt", "deep/d.txt")
  (root / "link").symlink_to(elsewhere)
  (root / "also").symlink_to("z")  # z is there already
  (elsewhere / "loop").symlink_to(root)
  (elsewhere / "deep/self").symlink_to(".")
  for found in (walk.below(root), walk.matching(f"{root}/**/*.txt"), walk.matching(f"{root}/**")):
    assert sorted(found.files) == ["a.txt", "link/c.txt", "link/deep/d.txt", "z/b.txt"]
  assert walk.below(root).left_out == {"linked twice": 3}
  assert sorted(walk.below(root / "link").files) == ["c.txt", "deep/d.txt", "loop/a.txt", "loop/z/b.txt"]


def test_many_links_to_each_other_end(tmp_path):
  for i in range(12):
    _write(tmp_path, f"{i}/x.txt")
    for j in range(12):
      (tmp_path / f"{i}/to{j}").symlink_to(f"../{j}")
  assert len(walk.below(tmp_path).files) == len(walk.matching(f"{tmp_path}/**/*.txt").files) == 12


def test_a_real_file_has_one_name(tmp_path):
  _write(tmp_path, "b.txt", "outside/x")
  (tmp_path / "root").mkdir()
  (tmp_path / "b.txt").rename(tmp_path / "root/b.txt")
  (tmp_path / "root/a.txt").symlink_to("b.txt")
  (tmp_path / "root/c.txt").symlink_to("../outside/x")
  (tmp_path / "root/d.txt").symlink_to("../outside/x")
  (tmp_path / "root/e.txt").symlink_to("gone")
  (tmp_path / "root/f.txt").symlink_to("f.txt")
  os.mkfifo(tmp_path / "root/g.txt")
  for found in (walk.below(tmp_path / "root"), walk.matching(f"{tmp_path}/root/?.txt")):
    assert _texts(found) == {"b.txt": "b.txt", "c.txt": "outside/x"}
    assert found.left_out == {"linked twice": 2, "dangling link": 2, "no regular file": 1}


def test_our_own_folders_and_locks_are_left_out(tmp_path):
  _write(tmp_path, "a.txt", "run/b.txt", "run/deep/c.txt", "poetry.lock", "built/d.txt")
  owned.mark(tmp_path / "run")
  lock = locks.Lock(tmp_path / "it.lock")
  lock.acquire()
  found = walk.below(tmp_path, frozenset({os.path.realpath(tmp_path / "built")}))
  assert sorted(found.files) == ["a.txt", "poetry.lock"]
  assert found.left_out == {"made by entropy_attn itself": 2, "lock file": 2}
  assert sorted(walk.matching(f"{tmp_path}/*/*.txt").files) == ["d.txt"]
  assert sorted(walk.matching(f"{tmp_path}/**/c.txt").files) == []
  assert sorted(walk.below(tmp_path / "run").files) == ["b.txt", "deep/c.txt"]  # asked for by its name
  assert sorted(walk.matching(f"{tmp_path}/run/*.txt").files) == ["b.txt"]
  lock.release()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["*", "**", "a", "b*", "?", "[ab]", "*.txt", ".h", ".*"]), min_size=1, max_size=4))
def test_globs_match_what_pythons_match(tmp_path_factory, parts):
  root = tmp_path_factory.getbasetemp() / "tree"
  if not root.exists():
    folders = ["", "a/", "b/", "bc/", "a/b/", "a/a/b/", ".h/", "a/.h/"]
    _write(root, *[folder + name for folder in folders for name in ("x.txt", "b.txt", "c.md", ".t.txt")])
  pattern = f"{root}/{'/'.join(parts)}"
  expected = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
  assert {str(path) for path in walk.matching(pattern).files.values()} == expected


def test_a_relative_glob(tmp_path, monkeypatch):
  _write(tmp_path, "a.txt", "more/b.txt", "more/c.md")
  monkeypatch.chdir(tmp_path)
  assert sorted(walk.matching("**/*.txt").files) == ["a.txt", "more/b.txt"]
  assert sorted(walk.matching("./more/*").files) == ["b.txt", "c.md"]
  assert sorted(walk.matching("../*/more/*.md").files) == ["c.md"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
  _write(tmp_path, "a/b.txt")
  scandir = os.scandir

  def refuse(path):
    if pathlib.Path(path).name == "a":
      raise PermissionError(13, "Permission denied")
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  for action in (lambda: walk.below(tmp_path), lambda: walk.matching(f"{tmp_path}/*/*.txt")):
    with pytest.raises(UserError, match="a cannot be listed .Permission denied"):
      action()


def test_names_of_no_encoding_are_read(tmp_path, small):
  for path in sorted(small.iterdir()):
    path.rename(small / os.fsdecode(b"\xff" + os.fsencode(path.name)))
  dataset = pipeline.prepare(of_files(tmp_path, small))
  assert "\ufffd0.txt" in dataset.identity["train"]["files"] | dataset.identity["valid"]["files"]


def test_what_is_left_out_is_told_at_once(tmp_path, small):
  config = of_files(tmp_path, small)
  assert "skipped" not in pipeline.prepare(config).description
  (small / "gone").symlink_to("nothing")
  assert pipeline.prepare(config).description.endswith("; files skipped: 1 dangling link")
