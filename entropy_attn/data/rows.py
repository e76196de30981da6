"""Rows of text in parquet, JSON and JSON-lines files (plain or gzip): one interface, bounded memory."""

from collections.abc import Iterator
import gzip
import json
import pathlib
import zlib

import pyarrow
from pyarrow import parquet

from entropy_attn.errors import UserError

_PARQUET = (".parquet",)
_JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SUFFIXES = _PARQUET + _JSON


def is_rows(name: str) -> bool:
  """Whether a file of this name can be read by `texts`."""
  return name.endswith(SUFFIXES)


def texts(path: pathlib.Path, column: str) -> Iterator[str]:
  """The column's value in each row, in order. A null counts as an empty text.

  A JSON file is either one object a line or one array of objects; the array alone is read whole.

  Raises:
    UserError: when the file cannot be read, or lacks the column.
  """
  try:
    yield from _parquet(path, column) if path.name.endswith(_PARQUET) else _json(path, column)
  except (pyarrow.ArrowException, json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} cannot be read as {path.suffix} ({reason}): download it again, or remove it") from error


def _parquet(path: pathlib.Path, column: str) -> Iterator[str]:
  with parquet.ParquetFile(path) as file:
    _check_column(column, file.schema_arrow.names, path)
    for batch in file.iter_batches(batch_size=256, columns=[column]):
      for value in batch.column(0):
        yield _text(value.as_py(), column, path)


def _json(path: pathlib.Path, column: str) -> Iterator[str]:
  opener = gzip.open if path.name.endswith(".gz") else open
  with opener(path, "rt", encoding="utf-8") as file:
    for row in _json_rows(file):
      _check_column(column, row if isinstance(row, dict) else (), path)
      yield _text(row[column], column, path)


def _json_rows(file) -> Iterator:
  start = file.read(1)
  while start.isspace():
    start = file.read(1)
  file.seek(0)
  if start == "[":
    yield from json.load(file)
    return
  for line in file:
    if line.strip():
      yield json.loads(line)


def _check_column(column: str, names, path: pathlib.Path) -> None:
  if column not in names:
    found = ", ".join(names) or "none"
    raise UserError(f"{path} has no column {column!r} (it has: {found}): rename the one with the text")


def _text(value, column: str, path: pathlib.Path) -> str:
  if value is not None and not isinstance(value, str):
    raise UserError(f"{path}: column {column!r} holds {type(value).__name__}, not text")
  return value or ""
