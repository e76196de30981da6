"""The README and the guides hold: links and flags are there (fast), and each command and snippet runs (slow).

A command that no rule here covers fails. What a slow test changes about one, to be done in seconds, is in SMALL.
"""

import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import command_line
from command_line import COMMANDS, NEEDED
import pages
import pytest
from waiting import PATIENCE, until

from entropy_attn import fields

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = [
  "README.md", "docs/train.md", "docs/pretrained.md", "docs/library.md", "docs/private.md",
  "entropy_attn/private/README.md",
]  # fmt: skip
# Their flags are checked, and they are not run: hours, chips that are not here, and installing.
BENCHMARKS = sorted(f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.md"))
PARSED = ["CONTRIBUTING.md", "docs/finetune.md", "docs/layout.md", "docs/results.md", "launch/README.md", *BENCHMARKS]
PAGES = [*GUIDES, *PARSED]
# Targets of make that install, need an environment of their own, or are the tests themselves: `make -n` knows them.
DRY_TARGETS = (
  "setup", "setup-report", "setup-private", "test", "test-slow", "test-parity", "test-aot", "lint", "docs", "dist",
  "bench-attention", "bench-train-step", "aot",
)  # fmt: skip
OTHERS_FLAGS = {"--help", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--signal", "--requeue", "--no-deps"}
# What stands in a text for the reader's own, and what takes its place here; Hub names too: a test has no network.
STAND_INS = {
  "FILE.py:NAME": "mine.py:silu", "FILE": "mine.txt", "FOLDER": "exported", "TEXTS": "texts",
  "RUN_OR_STUDY": "runs/quickstart",
  "RUN": "runs/quickstart", "SOURCE": "runs/quickstart", "distilgpt2": "runs/quickstart", "gpt2": "runs/quickstart",
}  # fmt: skip
MINE = {"mine.py": "import jax\nsilu = lambda x: jax.nn.silu(x)\n", "mine.txt": "def f(x):\n  return x + 1\n" * 20}

_TINY = {
  "model.num_layers": 2, "model.num_heads": 2, "model.d_model": 32, "model.context_length": 32,
  "model.max_positions": 64, "model.vocab_size": 300, "model.dtype": "float32", "train.steps": 4,
  "train.batch_size": 4, "train.accumulation": 1, "train.log_every": 1, "train.checkpoint_every": 4, "eval.every": 4,
  "eval.batch_size": 4, "eval.batches": 2,
}  # fmt: skip
_TEXTS = {"data.name": "text_files", "data.path": "texts"}
# Of each study, the runs that are trained: figures need one, and a table is whole with what is missing told.
_ONLY = {"compare": "ereg", "table3": "ereg", "collapse": "sm", "recipes": "without_teacher"}
# Flags that are added to a command unless it has them, so that it takes seconds.
SMALL = {
  "main": [f"--config.{name}={value}" for name, value in (_TINY | _TEXTS).items()],
  "study.__main__": [f"--override={name}={value}" for name, value in (_TINY | _TEXTS).items()],
  "private.profile": ["--length=4", "--threads=1"],
  "private.perplexity": ["--sequences=2"],
  "private.serve": ["--port=0", "--threads=1"],
  "private.prepare": ["--threads=1"],
  "private.generate": ["--threads=1"],
}
ENGINE = importlib.util.find_spec("spu")
NEED_ENGINE = ("private.profile", "private.perplexity", "private.serve", "private.prepare", "private.generate")
# Trained before the pages' commands, for finetune_gpt2 to start from; it takes the place of the Hub's gpt2.
LAYER_NORM = ["python", "-m", "entropy_attn.main", "--config=configs/codeparrot_ln_gelu.py:quick"]
# Each command up to its main(), in one process that forks: prints a line a command, its flags or what went wrong.
DRY = """
import importlib, json, os, sys, tempfile
from absl import flags
from entropy_attn import cli
for name, arguments in json.load(sys.stdin):
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    pid = os.fork()
    if pid == 0:
      os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
      sys.argv = [name, *arguments]
      command = importlib.import_module("entropy_attn." + name)
      there = set(flags.FLAGS)
      cli.run(command.define_flags, lambda: print(json.dumps(sorted(set(flags.FLAGS) - there))))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out.seek(0), err.seek(0)
    print(json.dumps([status, out.read().decode(), err.read().decode()]), flush=True)
"""


def whole(name):
  """A command's module, as test_layout names it."""
  return f"{name}.__main__" if f"{name}.__main__" in COMMANDS else name


def stand_in(words):
  """A command with what the reader has of his own put in; None where something is left open."""
  known = re.compile(r"(?<![\w./])(" + "|".join(map(re.escape, STAND_INS)) + r")(?![\w./])")
  prompt = lambda word: word.startswith("--prompt")
  words = [word if prompt(word) else known.sub(lambda found: STAND_INS[found[1]], word) for word in words]
  return None if any(pages.PLACEHOLDER.search(word) and not prompt(word) for word in words[1:]) else words


@functools.cache
def all_commands():
  """(page, words) of every command that is typed, those of make's targets included."""
  found = []
  for page in PAGES:
    for words in pages.commands(page, inline=True):
      words = stand_in(words) or words
      found.append((page, words))
      if words[0] == "make":
        found += [(f"{page}: make {words[1]}", recipe) for recipe in pages.made(words[1:])]
  return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder like a checkout: what commands read is there, and what earlier ones would have left."""
  return furnish(tmp_path_factory.mktemp("checkout"))


def furnish(folder):
  for name in ("configs", "benchmarks", "examples", "launch", "README.md", "tests", "Makefile"):
    (folder / name).symlink_to(ROOT / name)
  for path in ROOT.glob("requirements*.txt"):
    (folder / path.name).symlink_to(path)
  for name, text in MINE.items():
    (folder / name).write_text(text)
  (folder / "texts").mkdir()
  for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))[:30]:
    shutil.copy(path, folder / "texts")
  return folder


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page):
  found = pages.links(page)
  for file, anchor in found:
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists(), f"{page}: {file}"
    assert not anchor or anchor in pages.anchors(path), f"{page}: {file}#{anchor}"


@pytest.mark.parametrize("page", GUIDES)
def test_a_block_leaves_nothing_open(page):
  assert [words for words in pages.commands(page) if stand_in(words) is None] == []


def test_every_command_has_flags_and_files_that_are_there(place):
  typed, listed = [], []
  for page, words in all_commands():
    ours = pages.module(words)
    if ours is None:
      check_other(page, words, place)
    elif ours[0] != "__main__" and stand_in(words) and not any("…" in word for word in words):
      typed.append((page, words))
      listed.append((whole(ours[0]), ours[1]))
  assert len(typed) > 40
  for _, flags in listed:
    for value in re.findall(r"=(runs/[\w./-]+|exported)$", "\n".join(flags), re.MULTILINE):
      (place / value).mkdir(parents=True, exist_ok=True)
  for (page, words), (status, _, err) in zip(typed, dry(listed, place), strict=True):
    assert status == 0, f"{page}: {' '.join(words)}\n{err}"


def dry(listed, place):
  """(exit code, output, error) of each command that ends where its main() would begin."""
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  options = {"cwd": place, "env": env, "capture_output": True, "text": True, "check": False}
  done = subprocess.run([sys.executable, "-c", DRY], input=json.dumps(listed), **options)
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def check_other(page, words, place):
  """A command that is not ours: what it names is there."""
  said = f"{page}: {' '.join(words)}"
  while "=" in words[0]:
    words = words[1:]
  rest = words[1:]
  if words[0] == "make":
    assert rest, said  # `pages.made` asked make for it
  elif words[0] == "pip":
    assert rest[0] == "install", said
    named = [word for word in rest if word.endswith(".txt")]
    assert all((ROOT / name).exists() for name in named) and (named or rest[-1] in ("xprof", ".")), said
  elif re.search(r"python3?$", words[0]) and rest[0] == "-m" and "." in rest[1]:  # benchmarks.…, launch.…
    assert (ROOT / f"{rest[1].replace('.', '/')}.py").exists(), said
  elif re.search(r"python3?$", words[0]) and rest[0] == "-m":
    assert rest[1] in ("pip", "pytest", "venv", "playwright", "build", "mkdocs", "mypy", "ruff"), said
    assert all((place / word).exists() for word in rest[2:] if word.startswith("tests/")), said
  elif re.search(r"python3?$", words[0]):
    assert (place / rest[0]).is_file(), said
  else:
    raise AssertionError(f"{said}: no rule covers it")


@pytest.mark.parametrize("page", GUIDES)
def test_every_flag_that_a_text_names_is_one_of_a_command(page, place):
  text = "\n".join(re.findall(r"`[^`\n]*`", (ROOT / page).read_text()))
  named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*(?:\.[\w.]+)?", text))
  fields_named = {name.removeprefix("--config.") for name in named if name.startswith("--config.")}
  assert fields_named <= {*fields.FIELDS, *fields.GROUPS}
  assert {name for name in named if "." not in name} <= known_flags(place) | OTHERS_FLAGS


@functools.cache
def known_flags(place):
  """Of all commands, --noNAME of what is true or false included."""
  found = dry([(name, NEEDED[name]) for name in sorted(COMMANDS)], place)
  names = {name for status, out, err in found for name in json.loads(out)}
  return {f"--{prefix}{name}" for name in names for prefix in ("", "no")}


def test_the_readmes_snippet_runs(capsys):
  (text,) = pages.snippets("README.md")
  exec(compile(text, "README.md", "exec"), {"__name__": "snippet"})
  shares = [float(number) for number in re.findall(r"\d\.\d*", capsys.readouterr().out)]
  assert len(shares) == 4 and sum(shares) == 1


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A folder like a checkout with a trained quickstart."""
  folder = furnish(tmp_path_factory.mktemp("trained"))
  for words in (*recipes(["make", "run"]), LAYER_NORM):
    execute(words, folder)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_every_command_and_snippet_of_a_page_runs(page, checkout, tmp_path):
  folder = tmp_path / "checkout"
  shutil.copytree(checkout, folder, symlinks=True)
  with Server(folder) as server:
    for words in pages.commands(page, inline=True):
      if words := stand_in(words):
        for recipe in recipes(words):
          execute(recipe, folder, server)
  for text in pages.snippets(page):
    run_python(["-c", text], folder)


def recipes(words):
  """A command, or those that a target of make would run; none of what only installs."""
  if words[0] == "make":
    return [] if words[1] in DRY_TARGETS else [recipe for recipe in pages.made(words[1:]) if pages.module(recipe)]
  return [] if words[0] == "pip" else [words]


def execute(words, folder, server=None):
  """Runs a command as it is typed, with what SMALL adds to it."""
  ours = pages.module(words)
  if ours is None:
    assert (words[0] == "python" and words[1] != "-m") or words[2].startswith("benchmarks."), words
    if words[1] != "-m":  # benchmarks take an hour, and print what their pages hold
      run_python(words[1:], folder)
    return
  name, flags = whole(ours[0]), small(whole(ours[0]), ours[1])
  if name in NEED_ENGINE:
    if ENGINE is None:
      return
    if name == "private.serve":
      return server.start(flags)
    if name in ("private.prepare", "private.generate"):
      flags = [f"--server=127.0.0.1:{server.port()}", *(flag for flag in flags if not flag.startswith("--server="))]
  if name == "main":
    flags = [re.sub(r"^(--config=\S*finetune_gpt2(\.py)?)$", r"\1:quick", flag) for flag in flags]
  if name == "study.__main__":
    (name,) = {name for name in _ONLY for flag in flags if flag.startswith("--study=") and name in flag}
    flags = [re.sub(r"^(--study=[^:]*)$", r"\1:smoke", flag) for flag in flags if not flag.startswith("--only=")]
    flags.append(f"--only={_ONLY[name]}")
  run_python(["-m", f"entropy_attn.{ours[0]}" if name != "__main__" else "entropy_attn", *flags], folder)


def small(name, flags):
  """The flags with those of SMALL that they lack; of a study every one is taken, for the last one counts."""
  typed = {flag.partition("=")[0] for flag in flags}
  missing = lambda flag: flag.startswith("--override=") or flag.partition("=")[0] not in typed
  return [*flags, *filter(missing, SMALL.get(name, []))]


def run_python(arguments, folder):
  done = subprocess.run(
    [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE
  )
  assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
  assert "Traceback" not in done.stderr


def environment():
  return command_line.environment() | {"PYTHONPATH": str(ROOT)}


class Server:
  """The server of the page's first terminal: one at a time, and one for a client that a page shows alone."""

  def __init__(self, folder):
    self.folder, self.process, self.said = folder, None, folder / "server.log"

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.process is not None:
      self.process.terminate()
      self.process.wait(PATIENCE)

  def start(self, flags):
    self.__exit__()
    with self.said.open("w") as log:
      command = [sys.executable, "-m", "entropy_attn.private.serve", *flags]
      self.process = subprocess.Popen(command, cwd=self.folder, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    self.port()

  def port(self):
    if self.process is None:
      self.start(small("private.serve", ["--checkpoint=runs/quickstart", "--material=runs/served"]))
    said = lambda: re.search(r"serving on 127\.0\.0\.1:(\d+)", self.said.read_text())
    return until(said, self.process)[1]
