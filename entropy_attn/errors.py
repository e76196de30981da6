"""Errors that a user can mend: one line that says what, where and what to do."""

from collections.abc import Iterable
import difflib
import errno
import os


class UserError(Exception):
  """A mistake of input or environment. Commands print its text and exit with 2."""


def check_choice(field: str, value, choices: Iterable):
  """Raises UserError, naming field, value and choices, unless value is one of them."""
  choices = tuple(choices)
  if value in choices:
    return
  raise UserError(f"{field}={value!r} is not one of {', '.join(map(str, choices))}{nearest(value, choices)}")


def nearest(name, names: Iterable) -> str:
  """' (did you mean …?)' for the nearest of `names`, or ''."""
  close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1)
  return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(text, most: int = 200) -> str:
  """A text, or what an error says, on one line of at most so many characters."""
  return " ".join(str(text).split())[:most]


def shorten(names: list[str], most: int = 8) -> str:
  """The names, or the first of them and how many more."""
  more = f" and {len(names) - most:,} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def printable(text: str, most: int | None = None, keep: str = "") -> str:
  """A text that moves no cursor and hides nothing: what is no printable character is written as Python escapes it.

  Args:
    most: characters; the rest is left out. None: all.
    keep: other characters that stay as they are.
  """
  text = text if most is None or len(text) <= most else text[:most] + " …"
  return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException | None) -> bool:
  """Whether an error, or one that it came from, says that no space is left; some libraries say it in the text alone."""
  while error is not None:
    if getattr(error, "errno", None) in _NO_SPACE or any(os.strerror(code) in str(error) for code in _NO_SPACE):
      return True
    error = error.__cause__ or error.__context__
  return False
