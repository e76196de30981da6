"""The end of a run: what it reached, as a table on the terminal and as summary.json."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict
import numpy as np

from entropy_attn import flops
from entropy_attn.metrics import to_json


def summarize(config: ConfigDict, evaluation: Mapping, run: Mapping) -> dict:
  """summary.json: the counts of flops.summary, an evaluation, and what the run adds (status, step, seconds, …)."""
  return to_json({**flops.summary(config), **evaluation, **run})


def table(summary: Mapping) -> str:
  """The summary as aligned text."""
  ops = summary["nonlinear_ops"]
  rows = [("architecture", summary["architecture"]), ("status", summary["status"])]
  if summary.get("divergence"):
    rows.append(("divergence", summary["divergence"]["text"]))
  if summary.get("perplexity") is not None:
    rows.append(
      ("perplexity", f"{summary['perplexity']:.3f}  (loss {summary['loss']:.4f}, {summary['tokens']:,} tokens)")
    )
  rows += [
    ("steps", f"{summary['step']:,}"),
    ("parameters", f"{summary['parameters']:,} + {summary['threshold_parameters']:,} thresholds"),
    ("FLOPs a sequence", f"FFN {_billions(summary['ffn_flops'])}, attention {_billions(summary['attention_flops'])}"),
    ("nonlinear ops", "  ".join(op["notation"] for op in ops if op["published"])),
  ]
  if summary.get("head_shares") is not None:
    rows.append(("head shares", f"{percent(summary['head_shares'])}  (Max {summary['max_entropy']:.2f})"))
    observed = np.nanmax(np.asarray(summary["entropy_LxH"], float))
    rows.append(("", f"{percent(summary['head_shares_observed_max'])}  (Max {observed:.2f}, the largest observed)"))
    rows.append(("non-finite rows", str(int(np.sum(summary["nonfinite_rows_L"])))))
  if summary.get("private_inference"):
    rows.append(("private inference", private_inference(summary["private_inference"])))
  rows.append(("time", times(summary)))
  return "\n".join(f"{name:<18}{value}" for name, value in rows)


def _billions(count: float) -> str:
  return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def percent(shares: Sequence[float]) -> str:
  """'0 / 4 / 88 / 8 %'."""
  return " / ".join(f"{100 * share:.0f}" for share in shares) + " %"


def heads_line(entropy_LxH: np.ndarray, max_entropy: float, shares: Sequence[float]) -> str:
  """One line that names collapsed (below Max/4) and counts overloaded heads (from 3Max/4)."""
  collapsed = collapsed_heads(entropy_LxH, max_entropy)
  overloaded = int(np.sum(np.asarray(entropy_LxH) >= 0.75 * max_entropy))
  text = f"heads {percent(shares)}, overloaded {overloaded} of {np.size(entropy_LxH)}"
  return text + (f", collapsed {shorten(collapsed)}" if collapsed else "")


def collapsed_heads(entropy_LxH, max_entropy: float) -> list[str]:
  """The heads in the lowest bin, as 'L11H3'."""
  return [f"L{l}H{h}" for l, h in np.argwhere(np.asarray(entropy_LxH, float) < max_entropy / 4)]


def shorten(names: Sequence[str], most: int = 8) -> str:
  """The names, or the first of them and how many more."""
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def private_inference(cost: Mapping) -> str:
  """What private.cost predicts of one inference."""
  lines = ", ".join(f"{name} {seconds / 60:.1f} min" for name, seconds in cost["latency_seconds"].items())
  return (
    f"{cost['total_bytes'] / 1e9:.3f} GB, {cost['rounds']:,.0f} rounds for {cost['length']} tokens; {lines} (predicted)"
  )


def times(summary: Mapping) -> str:
  """Seconds of training, compilation, and throughput, as far as the summary has them."""
  text = f"{summary['seconds']:.0f} s in all"
  if summary.get("compile_seconds"):
    text += f", {summary['compile_seconds']:.0f} s of it compiling"
  if summary.get("tokens_per_second"):
    text += f"; {summary['tokens_per_second']:,.0f} tokens/s"
  if summary.get("mfu"):
    text += f", MFU {100 * summary['mfu']:.1f} %"
  return text
