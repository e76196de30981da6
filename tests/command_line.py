"""Commands as a user types them: which there are, what each needs, and what one says when it is run."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=configs/quickstart.py"
# Libraries that are slow to import.
SLOW = (
  "jax", "flax", "optax", "tensorflow_datasets", "grain", "orbax", "matplotlib", "scipy", "pyarrow", "spu",
)  # fmt: skip
# Every command by its name without the package's own, and what it cannot do without.
NEEDED = {
  "main": [CONFIG], "inspect": ["--model=x"], "export": ["--checkpoint=x", "--to=y"], "flops": [CONFIG],
  "private.cost": [CONFIG],
  "study.__main__": ["--study=configs/studies/compare.py", "--workdir=x"], "report.__main__": ["--workdir=."],
  "private.profile": [CONFIG], "private.serve": [CONFIG], "private.perplexity": [CONFIG],
  "private.generate": ["--prompt=x"], "private.prepare": ["--material=x", "--length=4"],
  "private.audit": ["--workdir=x"], "generate": ["--checkpoint=x", "--prompt=x"],
  "private.calibrate": [], "private.approximate": [],
}  # fmt: skip
COMMANDS = set(NEEDED)
# A command up to its main(): what it imported, and its own flags.
DRY = f"""
import importlib, json, sys
from absl import flags
from entropy_attn import cli
command, own = importlib.import_module(sys.argv.pop(1)), {{}}
def define_flags():
  there = set(flags.FLAGS)
  command.define_flags()
  own.update({{name: [flags.FLAGS[name].flag_type(), flags.FLAGS[name].help] for name in set(flags.FLAGS) - there}})
def main():
  print(json.dumps({{"slow": [name for name in {SLOW} if name in sys.modules], "flags": own}}))
cli.run(define_flags, main)
"""


def environment() -> dict[str, str]:
  """Of a command: this process's, without the devices that conftest.py has XLA simulate."""
  return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def call(*arguments, **kwargs):
  """Python with arguments: what it printed as text, and its exit code."""
  options = {"cwd": ROOT, "capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"} | kwargs
  if options.keys() & {"stdout", "stderr"}:
    del options["capture_output"]
  return subprocess.run([sys.executable, *map(str, arguments)], check=False, **options)


def run(*flags, command="flops", **kwargs):
  """A command, to its end."""
  return call("-m", f"entropy_attn.{command}", *flags, **kwargs)


def dry(command, *flags, **kwargs):
  """A command that ends where its main() would begin."""
  return call("-c", DRY, f"entropy_attn.{command}", *flags, **kwargs)


def error(done):
  """The one line that a command says of a mistake."""
  assert done.returncode == 2, done.stdout + done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and "Traceback" not in line
  return line
