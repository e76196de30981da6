"""The wheel as others have it: installed, and outside the repository."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from waiting import PATIENCE

ROOT = pathlib.Path(__file__).parents[1]
# A consumer's file; what is wrong in it must be found, or the package's types were not seen.
CONSUMER = """
from typing import assert_type

import jax
import jax.numpy as jnp

import entropy_attn
from entropy_attn import entropy
from entropy_attn.errors import UserError
from entropy_attn.model import GPT

x = jnp.zeros((1, 4, 2, 8))
out, entropies = entropy_attn.dot_product_attention(x, x, x, temperature=None, is_causal=True)
assert_type(out, jax.Array)
assert_type(entropies, jax.Array)
entropy_attn.dot_product_attention(x, x, x, is_casual=True)  # type: ignore[call-arg]
penalty = entropy.penalty(jnp.zeros((2, 1, 4, 2)), jnp.zeros((2, 2)), gamma="0.2")  # type: ignore[arg-type]
model = entropy_attn.load("runs/a", step=3)
entropy_attn.load("runs/a", step="last")  # type: ignore[arg-type]
error: Exception = UserError("x")
GPT
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The Python of an environment that holds the wheel, built from what git has, and of ours its dependencies alone."""
  tmp = tmp_path_factory.mktemp("wheel")
  listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
  for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
    if name and (ROOT / name).is_file():
      (tmp / "source" / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp / "source" / name).write_bytes((ROOT / name).read_bytes())
  _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp / "dist", tmp / "source", cwd=tmp)
  _run(sys.executable, "-m", "venv", tmp / "env", cwd=tmp)
  python = tmp / "env" / "bin" / "python"
  (wheel,) = (tmp / "dist").glob("*.whl")
  _run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=tmp)
  where = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp).stdout.strip()
  # No .pth file of that folder is read: the repository, which is installed there as it lies, is not found through it.
  ours = [path for path in sys.path if path.endswith("site-packages")]
  (pathlib.Path(where) / "dependencies.pth").write_text("\n".join(ours))
  return python


def _run(*command, cwd, expect=0):
  environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
  done = subprocess.run(
    [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
  )
  assert done.returncode == expect, done.stdout + done.stderr
  return done


def test_configs_studies_and_the_attention_are_there(installed, tmp_path):
  code = "import entropy_attn as e; print(e.__file__, e.dot_product_attention.__name__, e.__version__)"
  file, name, _ = _run(installed, "-c", code, cwd=tmp_path).stdout.split()
  assert pathlib.Path(file).is_relative_to(installed.parents[1]) and name == "dot_product_attention"
  for command in ([installed, "-m", "entropy_attn.flops"], [installed.with_name("entropy_attn"), "flops"]):
    done = _run(*command, "--config=codeparrot_ln_gelu", f"--json={tmp_path / 'f.json'}", cwd=tmp_path)
    assert "SM+LN+G" in done.stdout and json.loads((tmp_path / "f.json").read_text())
  missing = _run(installed.with_name("entropy_attn"), "flops", "--config=codeparot_sm", cwd=tmp_path, expect=2)
  assert "did you mean 'codeparrot_sm'?" in missing.stderr


def test_a_study_runs_and_knows_no_commit(installed, tmp_path):
  subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
  _run(installed, "-m", "entropy_attn.study", "--study=compare:smoke", "--workdir=out", "--noreport", cwd=tmp_path)
  table = json.loads((tmp_path / "out" / "table.json").read_text())
  assert table["runs"] and table["study"]["commit"] is None


def test_a_source_distribution_holds_what_makes_the_package_and_no_more(installed):
  (sdist,) = (installed.parents[2] / "dist").glob("*.tar.gz")
  listed = _run("tar", "tzf", sdist, cwd=installed.parent).stdout.split()
  tops = {name.split("/")[1] for name in listed if name.count("/") > 1 or not name.endswith("/")}
  assert tops == {
    "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "configs", "entropy_attn",
    "entropy_attn.egg-info", "pyproject.toml", "setup.cfg",
  }  # fmt: skip
  assert not [name for name in listed if "__pycache__" in name or name.endswith(".pyc")]


def test_types_are_seen_by_who_imports_the_package(installed, tmp_path):
  (tmp_path / "consumer.py").write_text(CONSUMER)
  flags = ["--python-executable", installed, "--warn-unused-ignores", "--ignore-missing-imports"]
  _run(sys.executable, "-m", "mypy", *flags, "consumer.py", cwd=tmp_path)
