"""The page of an inspected text: what `inspection.whole` found, in one file that asks for nothing."""

from collections.abc import Mapping, Sequence
import datetime
import pathlib
import re
import string

import numpy as np

from entropy_attn.report import figures, tables
from entropy_attn.report.page import parts, series

_SCRIPTS = ("heads.js", "text.js")
# Controls, and what is not seen but moves what is: direction marks, overrides and isolates, zero-width spaces. Joiners
# stay, which scripts and emoji need.
_UNSEEN = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_READY = {True: "ready", False: "not ready", None: "not judged"}


def render(found: Mapping, rows: Mapping) -> str:
  """The page as HTML.

  Args:
    found: by `inspection.whole.inspect`.
    rows: profile and layers, each (head, rows) of a table: see `inspection.tables`.
  """
  script = parts.source(*_SCRIPTS)
  private = found["private"]
  fields = {
    "policy": parts.policy((script,), "none"),
    "colors": parts.variables(),
    "style": parts.source("style.css"),
    "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    "name": parts.text(seen(pathlib.PurePath(found["text"]).name)),
    "model": parts.text(seen(found["model"])),
    "verdict": "".join(parts.fact(*fact) for fact in _verdict(found)),
    "alert": parts.text(private["text"].removeprefix("not ready: ")) if private["ready"] is False else "",
    "hide_alert": "" if private["ready"] is False else "hidden",
    "figure": _figure(found),
    "profile": _table(*rows["profile"]),
    "private": _private(private, rows.get("layers")),
    "data": parts.data(_data(found)),
    "script": script,
  }
  return string.Template(parts.source("text.html")).substitute(fields)


def seen(text: str) -> str:
  """A text with a code in place of each character that would not be seen, or would move others."""
  return _UNSEEN.sub(lambda found: f"⟨{ord(found[0]):04X}⟩", text)


def _verdict(found: Mapping) -> list[tuple[str, str, str]]:
  of_bytes, private = found["bits_per_byte"], found["private"]
  bits, of = (tables.NONE, "not known") if of_bytes is None else (f"{of_bytes:.3f}", "of the text")
  judged = private["text"].partition(": ")[2]
  if "layers" in private:
    judged = f"by {private['sequences']} sequences of {private['length']} tokens"
  return [
    ("Perplexity", f"{found['perplexity']:,.2f}", f"{found['predicted']:,} tokens predicted"),
    ("Bits per byte", bits, of),
    ("Heads by quarter of Max", tables.percent(found["head_shares"]), f"Max {found['max_entropy']:.2f} nats"),
    ("Private inference", _READY[private["ready"]], judged),
  ]


def _data(found: Mapping) -> dict:
  """What the page's program reads."""
  kept, entropy_LxH = found["kept"], np.asarray(found["entropy_LxH"], float)
  layers, heads = entropy_LxH.shape
  profile = [
    {"first": of["first"], "last": of["last"], "ceiling": series.short(of["ceiling"]), "of": _shorts(of["entropy_LxH"])}
    for of in found["profile"]
  ]
  return {
    "layers": layers,
    "heads": heads,
    "max": series.short(found["max_entropy"], 6),
    "entropy": series.pack(entropy_LxH[None]),
    "tokens": found["tokens"],
    "strings": [seen(text) for text in kept["strings"]],
    "positions": np.asarray(kept["positions"]).tolist(),
    "own": series.pack(np.moveaxis(np.asarray(kept["entropy_LxHxN"]), 2, 0)),
    "profile": profile,
    **parts.colors(),
  }


def _shorts(values) -> list[float | None]:
  return [series.short(value) for value in np.asarray(values, float).reshape(-1)]


def _figure(found: Mapping) -> str:
  """The heatmap, for browsers without scripts."""
  title = f"Entropy of every head\n{found['architecture']}"
  return parts.picture("Entropy of every head", figures.heatmap(found["entropy_LxH"], found["max_entropy"], title))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  cells = lambda tags, texts: "".join(
    f"<{tag}{' class=number' if i else ''}>{parts.text(text)}</{tag[:2]}>"
    for i, (tag, text) in enumerate(zip(tags, texts, strict=True))
  )
  top = cells(['th scope="col"'] * len(head), head)
  tags = ['th scope="row"'] + ["td"] * (len(head) - 1)
  lines = [f"<tr>{cells(tags, row)}</tr>" for row in rows]
  return (
    f'<div class="scroll" tabindex="0" role="group" aria-label="{parts.text(head[0])}, table"><table>'
    f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
  )


def _private(private: Mapping, layers) -> str:
  """The verdict, what does not fit, and the layers' table."""
  said = f'<p class="named"><strong>{_READY[private["ready"]].capitalize()}.</strong> '
  words = private["text"].partition(": ")[2]
  said += f"{parts.text(words[:1].upper() + words[1:])}.</p>"
  outside = "".join(f"<li>{parts.text(line)}</li>" for line in private.get("outside", ()))
  said += f"<details><summary>All that does not fit</summary><ul>{outside}</ul></details>" if outside else ""
  return said + (_table(*layers) if layers else "")
