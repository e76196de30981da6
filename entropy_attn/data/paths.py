"""Paths as users write them."""

import pathlib

from entropy_attn.errors import UserError


def expand(path: str, field: str) -> pathlib.Path:
  """A path with '~' replaced by the home folder.

  Raises:
    UserError: where the system knows no home folder.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:  # HOME is unset and the user has no entry, as in some containers
    raise UserError(
      f"{field}={path!r}: this process has no home folder: set HOME, or name one with --config.{field}=FOLDER"
    ) from error
