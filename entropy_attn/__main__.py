"""Lists the commands: python -m entropy_attn."""

import ast
import importlib.util
import pathlib
import sys

from entropy_attn import cli, usage
from entropy_attn.errors import UserError, nearest

COMMANDS = (
  "main", "study", "report", "inspect", "flops", "private.cost", "private.profile", "private.serve", "private.prepare",
  "private.generate", "private.perplexity", "private.audit", "private.calibrate", "private.approximate",
)  # fmt: skip


def text() -> str:
  """A line a command: the first of its docstring."""
  lines = [usage.row(f"python -m entropy_attn.{name}", _summary(name)) for name in COMMANDS]
  return "\n".join(["Commands, each with --help:", "", *lines])


def main(arguments: list[str]) -> None:
  """Prints the list.

  Raises:
    UserError: for any argument but --help.
  """
  for argument in arguments:
    if argument.lstrip("-") not in ("help", "h"):
      near = nearest(argument, COMMANDS)
      raise UserError(f"{argument!r} is no argument: write python -m entropy_attn.COMMAND{near}, or none to list them")
  print(text())


def _summary(name: str) -> str:
  """The first line of a command's docstring; the command is not imported, which would take its time."""
  path = pathlib.Path(importlib.util.find_spec(f"entropy_attn.{name}").origin)
  if path.name == "__init__.py":
    path = path.with_name("__main__.py")
  return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]


if __name__ == "__main__":
  with cli.one_line_errors():
    main(sys.argv[1:])
