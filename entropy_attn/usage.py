"""What --help prints: a command's docstring, its flags, and every field of the config as the given file sets it."""

from collections.abc import Mapping, Sequence
import re
import textwrap

from absl import flags

from entropy_attn import fields

WIDTH = 100
_LEFT = 48  # columns of `--name=value`


def text(doc: str, names: Sequence[str], config: Mapping | None, source: str) -> str:
  """The whole page.

  Args:
    doc: the command's docstring.
    names: of its own flags.
    config: whose values are shown; None: the command takes none.
    source: says where the config comes from.
  """
  parts = [doc.strip()]
  if names:
    parts.append("Flags:\n" + "\n".join(row(*_flag(flags.FLAGS[name])) for name in names))
  if config is not None:
    parts.append(f"Fields of the config, {source}; integers are below 2^31:")
    parts += [_group(group, config) for group in fields.GROUPS]
  return "\n\n".join([*parts, "--helpfull lists the flags of all libraries, too."])


def _group(group: str, config: Mapping) -> str:
  rows = []
  for name, field in fields.GROUPS[group].items():
    value = field.shown(config.get(group, {}).get(name, field.default))
    rows.append(row(f"--config.{group}.{name}={value}", f"{field.rule}  {field.comment}"))
  return "\n".join(rows)


def _flag(flag: flags.Flag) -> tuple[str, str]:
  """A flag with its default, or with a word for what it takes; and what is said of it."""
  kind = flag.flag_type()
  if kind == "bool":
    return f"--{flag.name}={str(flag.default).lower()}", f"{{true, false}}  {flag.help}"
  said = flag.help
  least, most = (getattr(flag.parser, name, None) for name in ("lower_bound", "upper_bound"))
  if least is not None:
    said = f"≥ {least:g}{'' if most is None else f', ≤ {most:g}'}  {said}"
  if flag.default in (None, [], ""):
    word = {"int": "INTEGER", "float": "NUMBER", "path": "PATH"}.get(kind, "TEXT")
    return f"--{flag.name}={word}", said
  if isinstance(flag, flags.MultiFlag):
    return " ".join(f"--{flag.name}={value}" for value in flag.default), said
  choices = getattr(flag.parser, "enum_values", None)
  if choices:
    said = re.sub(r"^<[^>]*>: ", f"{{{', '.join(choices)}}}  ", flag.help)
  return f"--{flag.name}={flag.default}", said


def row(left: str, right: str) -> str:
  """Two columns, the right one wrapped."""
  left = f"  {left}"
  lines = textwrap.wrap(right, WIDTH - _LEFT, break_long_words=False, break_on_hyphens=False)
  first = f"{left:<{_LEFT - 2}}  {lines[0]}" if len(left) <= _LEFT - 2 else f"{left}\n{' ' * _LEFT}{lines[0]}"
  return "\n".join([first, *(" " * _LEFT + line for line in lines[1:])])
