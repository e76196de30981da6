"""What is declared of the package: its parts, what it needs, its version, and what is run for it."""

import importlib
from importlib import metadata
import pathlib
import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

import entropy_attn
from entropy_attn.private.parties import engine

ROOT = pathlib.Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(name):
  """The requirements of a file, by name, without those of the files that it names."""
  lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
  found = [Requirement(line) for line in lines if line and not line.startswith("-r")]
  return {canonicalize_name(requirement.name): requirement for requirement in found}


def ranges(texts):
  found = [Requirement(text) for text in texts]
  return {canonicalize_name(r.name): r for r in found if canonicalize_name(r.name) != "entropy-attn"}


def test_every_folder_of_the_package_and_of_the_configs_is_listed():
  folders = {path.parent for root in ("entropy_attn", "configs") for path in (ROOT / root).rglob("*.py")}
  listed = DECLARED["tool"]["setuptools"]
  at = {name: listed["package-dir"].get(name, name.replace(".", "/")) for name in listed["packages"]}
  assert {ROOT / path for path in at.values()} == folders and len(at) == len(set(at.values()))


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_what_is_needed_is_in_the_metadata_as_in_the_file_of_pins(extra):
  declared = ranges(EXTRAS[extra] if extra else PROJECT["dependencies"])
  pinned = pins(f"requirements-{extra}.txt" if extra else "requirements.txt")
  if extra == "private":  # past the resolver: the engine, and what pip would else bring with the other
    del pinned["spu"]
    needed = {canonicalize_name(Requirement(r).name) for name in pinned for r in metadata.requires(name) or ()}
    pinned = {name: pin for name, pin in pinned.items() if name not in needed}
  assert set(declared) == set(pinned)
  for name, pin in pinned.items():
    (exact,) = pin.specifier
    assert exact.operator == "==" and pin.extras == declared[name].extras
    assert declared[name].specifier.contains(exact.version), name


def test_who_has_no_engine_is_told_of_the_one_that_is_pinned():
  spu = pins("requirements-private.txt")["spu"]
  assert f"pip install --no-deps {spu.name}{spu.specifier}," in engine._INSTALL


@pytest.mark.engine
def test_the_engine_asks_for_another_jax():
  """The reason why the extra does not name it: when this fails, it can."""
  (asked,) = (Requirement(text) for text in metadata.requires("spu") if text.startswith("jax"))
  assert not asked.specifier.contains(metadata.version("jax"))


def test_the_version_stands_in_one_place():
  assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
  cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
  assert cited == entropy_attn.__version__ == re.fullmatch(r"\d+\.\d+\.\d+", cited)[0]


def test_the_console_script_is_there():
  module, _, name = PROJECT["scripts"]["entropy_attn"].partition(":")
  assert callable(getattr(importlib.import_module(module), name))


def test_workflows_run_what_the_makefile_has_on_the_versions_that_are_declared():
  targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  said = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
  tried, made = set(), set()
  for path in (ROOT / ".github" / "workflows").glob("*.yml"):
    for job in yaml.safe_load(path.read_text())["jobs"].values():
      tried |= set(job.get("strategy", {}).get("matrix", {}).get("python", ()))
      commands = "\n".join(step.get("run", "") for step in job["steps"])
      made |= set(re.findall(r"\bmake(?: PYTHON=\S+)? ([\w-]+)", commands))
  assert tried == said and {"lint", "test", "test-slow", "docs"} <= made <= targets
