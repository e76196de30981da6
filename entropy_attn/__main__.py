"""Lists the commands, configs and studies; entropy_attn COMMAND is python -m entropy_attn.COMMAND."""

import ast
import importlib.util
import os
import pathlib
import runpy
import sys
import textwrap

from entropy_attn import cli, config_file, usage
from entropy_attn.errors import UserError, nearest

COMMANDS = (
  "main", "study", "report", "inspect", "generate", "export", "flops",
  "private.cost", "private.profile", "private.serve", "private.prepare",
  "private.generate", "private.perplexity", "private.audit", "private.calibrate", "private.approximate",
)  # fmt: skip


def text() -> str:
  """A line a command, the first of its docstring; and the names that --config and --study take."""
  lines = [usage.row(f"python -m entropy_attn.{name}", _summary(name)) for name in COMMANDS]
  lines = ["Commands, each with --help; `entropy_attn main` is `python -m entropy_attn.main`:", "", *lines]
  for flag, ours in (("config", config_file.CONFIGS), ("study", config_file.STUDIES)):
    names = textwrap.fill(", ".join(config_file.names(ours)), usage.WIDTH - 2)
    lines += ["", f"For --{flag}, by name, from {ours}:", "", textwrap.indent(names, "  ")]
  return "\n".join(lines)


def main() -> None:
  """The console script: runs the command that is named first as `python -m` would, or lists them.

  Raises:
    UserError: for a name that is no command's.
  """
  if sys.argv[1:2] and sys.argv[1] in COMMANDS:
    command = sys.argv.pop(1)
    if not sys.flags.safe_path:
      sys.path[0] = os.getcwd()  # as `python -m` has it: files of the user's may import each other
    runpy.run_module(f"entropy_attn.{command}", run_name="__main__", alter_sys=True)
    return
  with cli.one_line_errors():
    for argument in sys.argv[1:]:
      if argument.lstrip("-") not in ("help", "h"):
        raise UserError(f"{argument!r} is no command{nearest(argument, COMMANDS)}: without one, they are listed")
    print(text())


def _summary(name: str) -> str:
  """The first line of a command's docstring; the command is not imported, which would take its time."""
  path = pathlib.Path(importlib.util.find_spec(f"entropy_attn.{name}").origin)
  if path.name == "__init__.py":
    path = path.with_name("__main__.py")
  return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]


if __name__ == "__main__":
  main()
