"""Bytes → text: UTF-8, or what a byte-order mark says."""

import codecs
import re

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = (
  (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_MARK = 4


def encoding_of(start: bytes) -> str:
  """The encoding of a text that begins with these bytes; its decoder drops the byte-order mark."""
  return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def text_of(content: bytes) -> str:
  """The text of a file.

  Raises:
    UnicodeDecodeError: when it is of another encoding than it should be; `reason` says which.
  """
  encoding = encoding_of(content[:LONGEST_MARK])
  if encoding == "utf-8" and _is_unmarked_utf16(content):
    raise UnicodeDecodeError(encoding, content, 0, 1, "UTF-16 without a byte-order mark")
  return content.decode(encoding)


def _is_unmarked_utf16(content: bytes) -> bool:
  """Whether every other byte is zero: ASCII in UTF-16, which UTF-8 would read as letters with NULs between them."""
  if b"\0" not in content:
    return False
  few, many = sorted((content[0::2].count(0), content[1::2].count(0)))
  return many > 0.9 * (len(content) // 2) and few < 0.1 * many


def reason(error: UnicodeDecodeError) -> str:
  """Why a text was left out, such as 'not UTF-8'."""
  kind = error.encoding.upper().replace("_", "-")
  return f"not {next((name for name in ('UTF-16', 'UTF-32') if kind.startswith(name)), 'UTF-8')}"


def without_surrogates(text: str) -> str:
  """The text with U+FFFD in place of each unpaired surrogate, which no encoding has; else the same object."""
  return _SURROGATE.sub("\ufffd", text) if _SURROGATE.search(text) else text
