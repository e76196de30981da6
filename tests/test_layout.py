"""The layout holds: who may import whom, read off the code's own import statements."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "entropy_attn"
# What is typed: thin, and imported by nothing. Names are without the package's own.
COMMANDS = {
  "main", "flops", "inspect", "generate", "export", "study.__main__", "report.__main__",
  "private.profile", "private.serve", "private.generate", "private.prepare", "private.cost",
  "private.perplexity", "private.audit", "private.calibrate", "private.approximate",
}  # fmt: skip
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
