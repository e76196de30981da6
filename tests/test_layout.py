"""The layout holds: who may import whom, read off the code's own import statements."""

import ast
import functools
import pathlib
import symtable

from command_line import COMMANDS
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "entropy_attn"
# Each library that is wrapped, and the one file that imports it.
WRAPPED = {
  "clu": "instruments",
  "orbax": "run.checkpoint",
  "tensorstore": "run.checkpoint",
  "tensorboardX": "run.metrics",
  "spu": "private.parties.engine",
  "tabulate": "report.tables",
  "tqdm": "progress",
  "filelock": "locks",
  "tensorflow_datasets": "data.builder",
  "huggingface_hub": "data.hub",
  "safetensors": "interop.tensors",
  "altair": "report.page.charts",
  "vl_convert": "report.page.charts",
}
# Whoever is under the first may import nothing of ours but what is under the second.
ONLY = {
  "errors": (),
  "progress": (),
  "instruments": ("progress",),
  "run.charts": (),
  "locks": (),
  "owned": (),
  "files": (),
  "paths": ("errors", "files"),
  "entropy": (),
  "published": (),
  "reparam": (),
  "sizes": (),
  "optimizer": ("reparam",),
  "parts": (),
  "kernels": ("kernels", "parts"),
  "attention": ("entropy", "kernels", "parts"),
  "sharding": ("errors",),
  "loss": ("parts", "sharding"),
  "curriculum": ("errors", "reparam"),
  "cache": (),
  "model": ("attention", "cache", "curriculum", "loss", "parts", "reparam", "sharding", "sizes"),
  "sampling": ("errors",),
  "data.stream": (),
  "data": ("data", "errors", "locks", "owned", "paths", "progress"),
  "fields": ("data.corpora", "errors"),
  "usage": ("fields",),
  "config": ("errors", "fields"),  # no command waits for JAX to say that a field is mistyped
  "config_file": ("errors", "fields", "paths"),
  "cli": ("config", "config_file", "errors", "fields", "paths", "usage"),
  "report.tables": (),
  "report.style": (),
}
# Whoever is under the first may import nothing under the second.
NEVER = [
  ("run", ("report", "study", "inspection", "private", "train", "evaluate", "reporter")),
  ("report", ("study", "inspection", "private.parties", "train", "evaluate")),  # a price needs no engine
  ("study", ("private.parties", "train", "evaluate", "data", "model")),
  ("private.program", ("private.parties", "private.price", "data")),
  ("private.price", ("private.parties", "run", "data")),
  ("inspection", ("private.parties", "private.price", "study", "train", "evaluate", "run.checkpoint")),
  ("private", ("inspection", "study", "train", "evaluate", "run.checkpoint")),
  ("interop", ("run", "report", "study", "private", "train", "evaluate")),
  ("train", ("private", "study", "report")),
  ("decode", ("private", "train", "evaluate", "run")),  # whatever gives it a model
]


def modules():
  """Each module of the package by its dotted name, without the package's own, and its path."""
  for path in sorted((ROOT / PACKAGE).rglob("*.py")):
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    yield ".".join(part for part in parts if part != "__init__"), path


PATHS = dict(modules())


def imports_of(path):
  """Dotted names of what a file imports, wherever in it; ours without the package's name, others whole."""
  ours, others = set(), set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: a relative import"
      base = node.module.removeprefix(PACKAGE).lstrip(".")
      ours_here = node.module.split(".")[0] == PACKAGE
      members = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
      names = [m if ours_here and m in PATHS else base if ours_here else node.module for m in members]
      if ours_here:
        ours |= set(names) - {""}
        continue
    else:
      continue
    for name in names:
      assert name.split(".")[0] != PACKAGE, f"{path}: write from {PACKAGE} import …"
      others.add(name.split(".")[0])
  return ours, others


IMPORTS = {name: imports_of(path) for name, path in PATHS.items()}


def under(name, place):
  return name == place or name.startswith(f"{place}.")


def test_commands_are_imported_by_nothing():
  assert COMMANDS <= set(PATHS)
  assert {name: ours & COMMANDS for name, (ours, _) in IMPORTS.items() if ours & COMMANDS} == {}


def test_every_command_is_listed_and_is_flags_and_main():
  typed = {name for name, path in PATHS.items() if "cli.run(define_flags, main)" in path.read_text()}
  assert typed == COMMANDS
  for name in typed:
    body = ast.parse(PATHS[name].read_text()).body
    assert {"define_flags", "main"} <= {node.name for node in body if isinstance(node, ast.FunctionDef)}, name
    assert ast.unparse(body[-1]) == "if __name__ == '__main__':\n    cli.run(define_flags, main)", name


@pytest.mark.parametrize("library", WRAPPED)
def test_a_wrapped_library_is_behind_one_file(library):
  assert [name for name, (_, others) in IMPORTS.items() if library in others] == [WRAPPED[library]]


@pytest.mark.parametrize("place", ONLY)
def test_foundations_rest_on_nothing_above_them(place):
  for name, (ours, _) in IMPORTS.items():
    if under(name, place):
      above = {other for other in ours if not any(under(other, allowed) for allowed in ONLY[place])}
      assert above == set(), f"{name} imports {above}"


@pytest.mark.parametrize(("place", "forbidden"), NEVER)
def test_imports_point_one_way(place, forbidden):
  for name, (ours, _) in IMPORTS.items():
    if under(name, place):
      wrong = {other for other in ours for f in forbidden if under(other, f) and not under(other, place)}
      assert wrong == set(), f"{name} imports {wrong}"


def test_no_files_import_each_other_in_a_circle():
  done, path = set(), []

  def visit(name):
    assert name not in path, f"a circle: {' → '.join([*path[path.index(name) :], name])}"
    if name in done:
      return
    path.append(name)
    for other in IMPORTS[name][0]:
      visit(other)
    done.add(path.pop())

  for name in IMPORTS:
    visit(name)


def test_the_run_folders_files_are_named_in_run_alone():
  names = ("config.json", "environment.json", "summary.json", "metrics.jsonl", "checkpoints", "private_profile")
  for name, path in PATHS.items():
    if under(name, "run") or name == "interop.read":  # a Hugging Face folder has a config.json, too
      continue
    strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    texts = [text for text in strings if isinstance(text, str) and text in names]
    assert texts == [], f"{name} names {texts}"


def test_a_file_can_be_held_in_the_head():
  lengths = {name: len(path.read_text().splitlines()) for name, path in PATHS.items()}
  assert {name: count for name, count in lengths.items() if count > 400} == {}


def test_what_tests_share_is_in_plain_modules_and_is_there():
  wrong = list(wrongly_borrowed(ROOT / "tests"))
  assert wrong == [], wrong


def test_what_a_test_cannot_borrow_is_found(tmp_path):
  root = tmp_path / "tests"
  (root / "deep").mkdir(parents=True)
  for name, text in {
    "steps.py": "import math\nA, b = 1, 2\nif A:\n  C: int = 3\ndef f(x): y = x\nclass K: z = 4\n",
    "test_a.py": "from steps import A, C, K, f, math\nfrom deep import more as other\nimport steps\nother.D, steps.b\n",
    "test_b.py": "def late():\n  from steps import y, z\nimport steps as s\ns.gone\nimport test_a, conftest\n",
    "conftest.py": "from deep.more import D\n",
    "deep/more.py": "D = 5\n",
    "deep/test_c.py": "from more import D\nfrom tests.steps import B\nfrom tests.test_a import A\nimport json, math\n",
  }.items():
    (root / name).write_text(text)
  assert set(wrongly_borrowed(root)) == {
    ("test_b.py", "steps.py", "y"), ("test_b.py", "steps.py", "z"), ("test_b.py", "steps.py", "gone"),
    ("test_b.py", "test_a.py", None), ("test_b.py", "conftest.py", None),
    ("test_c.py", "steps.py", "B"), ("test_c.py", "test_a.py", "A"),
  }  # fmt: skip


def wrongly_borrowed(root):
  """(file, lender, name) of what files below root take of a test file or of conftest.py, or where it is not defined."""
  for path in _files(root):
    for lender, name in borrowed(path, root):
      if lender.stem.startswith("test_") or lender.stem == "conftest" or name not in {None, *defined(lender)}:
        yield path.name, lender.name, name


def borrowed(path, root):
  """(lender, name) of what a file takes of others below root, wherever in it; the name is None for a whole module."""
  nodes, modules = list(ast.walk(ast.parse(path.read_text()))), {}
  for node in nodes:
    if isinstance(node, ast.Import):
      modules |= {alias.asname or alias.name: _file(alias.name, path, root) for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      lender = _file(node.module, path, root)
      for alias in node.names:
        modules[alias.asname or alias.name] = _file(f"{node.module}.{alias.name}", path, root)
        if lender:
          yield lender, alias.name
  for lender in filter(None, modules.values()):
    yield lender, None
  for node in nodes:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and modules.get(node.value.id):
      yield modules[node.value.id], node.attr


def _file(module, importer, root):
  """Of a module below root, by the folders in which pytest has Python look; else None."""
  for folder in (importer.parent, root, root.parent):
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    if path in _files(root):
      return path
  return None


@functools.cache
def _files(root):
  return dict.fromkeys(sorted(root.rglob("*.py")))  # in order, and quick to look in


@functools.cache
def defined(path):
  symbols = symtable.symtable(path.read_text(), str(path), "exec").get_symbols()
  return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
