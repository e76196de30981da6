"""Rows of text in parquet, JSON and JSON-lines files (plain or gzip): one interface, bounded memory."""

from collections.abc import Iterator
import gzip
import io
import json
import pathlib
import zlib

import pyarrow
from pyarrow import parquet

from entropy_attn.data import decoding
from entropy_attn.errors import UserError, one_line

_PARQUET = (".parquet",)
_JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SUFFIXES = _PARQUET + _JSON


class _BadRow(Exception):
  """A row that cannot be read; its text says which, and why."""


def is_rows(name: str) -> bool:
  """Whether a file of this name can be read by `texts`."""
  return name.endswith(SUFFIXES)


def texts(path: pathlib.Path, column: str) -> Iterator[str]:
  """The column's value in each row, in order; it may hold unpaired surrogates. A null counts as an empty text.

  A JSON file is either one object a line or one array of objects; the array alone is read whole. It is UTF-8, or what
  its byte-order mark says.

  Raises:
    UserError: when the file or a row cannot be read, or lacks the column.
  """
  try:
    yield from _parquet(path, column) if path.name.endswith(_PARQUET) else _json(path, column)
  except (pyarrow.ArrowException, _BadRow, EOFError, OSError, zlib.error) as error:
    reason = one_line(error)
    raise UserError(f"{path} cannot be read as {path.suffix} ({reason}): download it again, or remove it") from error


def _parquet(path: pathlib.Path, column: str) -> Iterator[str]:
  # Opened here: pyarrow takes some characters of a path for those of a URI.
  with open(path, "rb") as opened, parquet.ParquetFile(opened) as file:
    _check_column(column, file.schema_arrow.names, path)
    row = 0
    for batch in file.iter_batches(batch_size=256, columns=[column]):
      for value in batch.column(0):
        row += 1
        yield _text(_value(value, row), column, path, row)


def _value(value, row: int):
  try:
    return value.as_py()
  except UnicodeDecodeError as error:
    try:
      return value.as_buffer().to_pybytes().decode("utf-8", "surrogatepass")
    except (UnicodeDecodeError, AttributeError):
      raise _BadRow(f"row {row}: not UTF-8") from error


def _json(path: pathlib.Path, column: str) -> Iterator[str]:
  with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
    for row, value in _json_rows(file):
      _check_column(column, value if isinstance(value, dict) else (), path, row)
      yield _text(value[column], column, path, row)


def _json_rows(file) -> Iterator[tuple[int, object]]:
  """(number, value) of each row; of lines, their number in the file."""
  lines = _lines(file)
  is_first = True
  for number, line in lines:
    if not line.strip():
      continue
    if is_first and line.lstrip().startswith("["):
      whole = "".join([line, *(rest for _, rest in lines)])
      yield from enumerate(_parse(whole, number), 1)
      return
    is_first = False
    yield number, _parse(line, number)


def _lines(file) -> Iterator[tuple[int, str]]:
  encoding = decoding.encoding_of(file.read(decoding.LONGEST_MARK))
  file.seek(0)
  if encoding in ("utf-16", "utf-32"):  # their line ends are no single bytes
    number = 0
    try:
      for number, line in enumerate(io.TextIOWrapper(file, encoding=encoding, newline="\n"), 1):
        yield number, line
    except UnicodeDecodeError as error:
      raise _BadRow(f"after row {number}: not {encoding.upper()}") from error
    return
  for number, line in enumerate(file, 1):
    try:
      yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
      raise _BadRow(f"row {number}: not UTF-8") from error


def _parse(text: str, number: int):
  try:
    return json.loads(text, strict=False)  # a control character in a string does no harm
  except (ValueError, RecursionError) as error:
    raise _BadRow(f"row {number}: not JSON, {error}") from error


def _check_column(column: str, names, path: pathlib.Path, row: int | None = None) -> None:
  if column not in names:
    found = ", ".join(names) or "none"
    where = "" if row is None else f" in row {row}"
    raise UserError(f"{path} has no column {column!r}{where} (it has: {found}): rename the one with the text")


def _text(value, column: str, path: pathlib.Path, row: int) -> str:
  if value is not None and not isinstance(value, str):
    raise UserError(
      f"{path}: column {column!r} holds {type(value).__name__}, not text, in row {row}: mend or remove it"
    )
  return value or ""
