"""Tables, in one place and each form: for a terminal, in Markdown, LaTeX and CSV; and the numbers in them as words."""

from collections.abc import Iterable, Mapping, Sequence
import csv as csv_lib
import io
import re

import numpy as np
import tabulate

tabulate.MIN_PADDING = 0  # a column is as wide as what it holds

NONE = "–"  # where there is no number
# What LaTeX has no letter for in its usual fonts, after tabulate has escaped its own special characters.
_LATEX = {
  "–": "--", "—": "---", "…": r"\dots{}", "·": r"$\cdot$", "±": r"$\pm$", "×": r"$\times$", "→": r"$\to$", "−": "$-$",
  "≤": r"$\le$", "≥": r"$\ge$", "λ": r"$\lambda$", "γ": r"$\gamma$", "θ": r"$\theta$", "σ": r"$\sigma$",
  "α": r"$\alpha$", "β": r"$\beta$",
}  # fmt: skip
_POWER = re.compile(r"R\\\^\{\}\\\{(\d+)×(\d+)\\\}")  # R^{128×768}, as tabulate escapes it


def text(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), total: bool = False) -> str:
  """Rows under their head.

  Args:
    head: one name a column.
    rows: of texts, as many as the head has.
    left: columns that are set to the left; the others to the right.
    total: whether the last row is a sum, under a rule of its own.
  """
  rows = [*rows[:-1], tabulate.SEPARATING_LINE, rows[-1]] if total else list(rows)
  return _tabulate(head, rows, left, "simple")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
  """Rows under their head in Markdown; the arguments are those of `text`."""
  escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
  return _tabulate(escaped[0], escaped[1:], left, "pipe")


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
  """Rows under their head as a LaTeX tabular of the package booktabs, in ASCII; the arguments are those of `text`."""
  return _ascii(_POWER.sub(r"$\\mathbf{R}^{\1 \\times \2}$", _tabulate(head, rows, left, "latex_booktabs")))


def latex_comment(line: str) -> str:
  """A line that LaTeX passes over."""
  return f"% {_ascii(line)}"


def csv(head: Sequence[str], rows: Sequence[Sequence]) -> str:
  """Rows under their head as CSV (RFC 4180); what is None is empty."""
  out = io.StringIO()
  csv_lib.writer(out, lineterminator="\n").writerows([head, *rows])
  return out.getvalue()


def pairs(rows: Iterable[tuple[str, str]]) -> str:
  """Names and what they stand for, one pair a line."""
  return tabulate.tabulate(list(rows), tablefmt="plain", disable_numparse=True)


def run_summary(summary: Mapping) -> str:
  """A run's summary.json, or an evaluation in its form, as text."""
  rows = [("architecture", summary["architecture"]), ("status", summary["status"])]
  if summary.get("divergence"):
    rows.append(("divergence", summary["divergence"]["text"]))
  if summary.get("perplexity") is not None:
    reached = f"{summary['perplexity']:.3f}  (loss {summary['loss']:.4f}, {summary['tokens']:,} tokens)"
    rows.append(("perplexity", reached))
  if summary.get("bits_per_byte") is not None:
    rows.append(("bits per byte", f"{summary['bits_per_byte']:.4f}  ({summary['bytes']:,} bytes of text)"))
  rows += [
    ("steps", f"{summary['step']:,}"),
    ("parameters", f"{summary['parameters']:,} + {summary['threshold_parameters']:,} thresholds"),
    ("FLOPs a sequence", f"FFN {large(summary['ffn_flops'])}, attention {large(summary['attention_flops'])}"),
    ("nonlinear ops", "  ".join(op["notation"] for op in summary["nonlinear_ops"] if op["published"])),
  ]
  if summary.get("head_shares") is not None:
    observed = np.nanmax(np.asarray(summary["entropy_LxH"], float))
    rows += [
      ("head shares", f"{percent(summary['head_shares'])}  (Max {summary['max_entropy']:.2f})"),
      ("", f"{percent(summary['head_shares_observed_max'])}  (Max {observed:.2f}, the largest observed)"),
      ("non-finite rows", str(int(np.sum(summary["nonfinite_rows_L"])))),
    ]
  if summary.get("private_inference"):
    rows.append(("private inference", _private_inference(summary["private_inference"])))
  return pairs([*rows, ("time", _times(summary))])


def percent(shares: Iterable[float]) -> str:
  """'0 / 4 / 88 / 8 %'."""
  return " / ".join(f"{100 * share:.0f}" for share in shares) + " %"


def duration(seconds: float) -> str:
  """'90 s', '4.2 min' or '2.5 h'."""
  if seconds < 120:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _ascii(words: str) -> str:
  """With LaTeX's commands for letters that have some, and a question mark for others: none stops the compiler."""
  for letter, command in _LATEX.items():
    words = words.replace(letter, command)
  return words.encode("ascii", "replace").decode()


def _tabulate(head, rows, left, form: str) -> str:
  sides = ["left" if i in left else "right" for i in range(len(head))]
  return tabulate.tabulate(rows, headers=list(head), tablefmt=form, colalign=sides, disable_numparse=True)


def large(count: float) -> str:
  """'14.5B' or '1.8M'."""
  return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _private_inference(cost: Mapping) -> str:
  online = cost.get("online_latency_seconds", {})  # a run that ended before this was told apart has none
  with_prompt = {name: f" ({seconds:.0f} s with the prompt)" for name, seconds in online.items()}
  took = cost["latency_seconds"].items()
  lines = ", ".join(f"{name} {seconds / 60:.1f} min{with_prompt.get(name, '')}" for name, seconds in took)
  size = f"{cost['total_bytes'] / 1e9:.3f} GB, {cost['rounds']:,.0f} rounds for {cost['length']} tokens"
  return f"{size}; {lines} (predicted)"


def _times(summary: Mapping) -> str:
  """Training, compilation and throughput, as far as the summary has them."""
  parts = [f"{summary['seconds']:.0f} s in all"]
  if summary.get("compile_seconds"):
    parts.append(f", {summary['compile_seconds']:.0f} s of it compiling")
  if summary.get("tokens_per_second"):
    parts.append(f"; {summary['tokens_per_second']:,.0f} tokens/s")
  if summary.get("mfu"):
    parts.append(f", MFU {100 * summary['mfu']:.1f} %")
  return "".join(parts)
