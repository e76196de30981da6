"""Whether the packages of requirements-report.txt are there: the report alone needs them."""

import importlib.util

from entropy_attn.errors import UserError


def installed() -> bool:
  """Whether what the report needs is there (requirements-report.txt)."""
  return all(importlib.util.find_spec(name) is not None for name in ("altair", "vl_convert"))


def check_installed() -> None:
  """Raises UserError where what the report needs is not there."""
  if not installed():
    raise UserError(
      "the report needs altair and vl-convert-python: pip install altair vl-convert-python, or make setup-report"
    )
