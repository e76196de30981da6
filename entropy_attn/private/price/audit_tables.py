"""The audit as tables and pictures: the paper's Comm columns next to what two programs take."""

from collections.abc import Mapping

from matplotlib.figure import Figure
import numpy as np

from entropy_attn.private.price.comparison import KINDS
from entropy_attn.private.price.lines import LINES, latency
from entropy_attn.report import costs, tables

BANDWIDTHS = np.geomspace(10, 10_000, 61)  # Mbit/s


def text(result: Mapping) -> str:
  """The audit as tables.

  Args:
    result: of `comparison.compare`.
  """
  parts = [_bytes_table(result["rows"]), _ladder_tables(result["ladders"]), _causes(result), _gelu(result)]
  return "\n\n".join([*parts, _latency(result), *([_errors(result)] if result["errors"] else [])])


def _bytes_table(rows) -> str:
  gb = lambda run: f"{run['total_bytes'] / 1e9:.2f}" if run else "–"
  head = ("table", "model", "published", "stock", "engine run", "ours", "engine run", "published / ours", "rounds")
  lines = [
    (
      str(row["table"]), row["model"], f"{row['gigabytes']:.2f}", gb(row["stock"]), gb(row["stock_measured"]),
      gb(row["ours"]), gb(row["ours_measured"]), f"{row['gigabytes'] * 1e9 / row['ours']['total_bytes']:.1f}",
      f"{row['ours']['rounds']:,.0f}",
    )
    for row in rows
  ]  # fmt: skip
  layers = sorted({f"{m['measured_layers']} of {m['num_layers']}" for row in rows for m in
                   (row["stock_measured"], row["ours_measured"]) if m})  # fmt: skip
  note = "No engine runs yet."
  if layers:
    note = f"Engine runs: {', '.join(layers)} layers run, the rest extrapolated. "
    note += "Predictions take four squares an exponential, a run what its model needs."
  title = "GB of one inference, both ways, by the cost model unless it says engine run"
  return f"{title}\n\n{tables.text(head, lines, left=(0, 1))}\n{note}"


def _ladder_tables(ladders) -> str:
  parts = []
  for name, steps in ladders.items():
    lines = [
      (s["step"], f"{s['total_bytes'] / 1e9:.3f}", f"{s['saved_bytes'] / 1e9:+.3f}" if s["saved_bytes"] else "",
       f"{s['rounds']:,.0f}")
      for s in steps
    ]  # fmt: skip
    parts.append(tables.text((f"{name}, T=128", "GB", "saved", "rounds"), lines))
  return "\n\n".join(parts)


def _causes(result) -> str:
  kinds = ("published", *KINDS)
  lines = [
    (row["model"], *(f"{row[part][kind]:.2f}" for part in ("layer", "rest") for kind in kinds))
    for row in result["per_layer"]
  ]
  head = ("GB at T=128", *(f"{part}, {kind}" for part in ("a layer", "all else") for kind in kinds))
  return (
    tables.text(head, lines)
    + "\nFrom 12 and 18 layers (Tables 3 and 8). Outside of the layers the stock program here is cheaper than the "
    "published one:\nits client makes the embedding's one-hot rows itself, and weights stay with the server, unshared. "
    "Of ours the last\nlayer costs a fraction of a layer, which lowers all else."
  )


def _gelu(result) -> str:
  lines = [
    (f"Table {row['table']}", *(f"{row[name]:,.0f}" for name in ("published", *KINDS)))
    for row in result["gelu_bytes_an_element"]
  ]
  first = {row["model"]: row for row in result["rows"] if row["table"] == 3}
  ratio = lambda get: get(first["SM+LN+G"]) / get(first["SM+ScFuFFN"])
  return (
    tables.text(("bytes of a GELU above a ReLU, an element", "published", *KINDS), lines)
    + f"\nSM+LN+G costs {ratio(lambda r: r['gigabytes']):.1f} times SM+ScFuFFN as published, "
    f"{ratio(lambda r: r['stock']['total_bytes']):.1f} times in the stock program, and "
    f"{ratio(lambda r: r['ours']['total_bytes']):.1f} times where both are made cheap."
  )


def _latency(result) -> str:
  head = (
    "table",
    "model",
    "published GB",
    "published min",
    "min at 100 Mbit/s",
    "MB/s it would take",
    "ours: LAN",
    "WAN",
  )
  lines = []
  for row in result["rows"]:
    ours = [latency(row["ours"], *line) / 60 for line in LINES.values()]
    lines.append(
      (str(row["table"]), row["model"], f"{row['gigabytes']:.2f}", f"{row['minutes']:.2f}",
       f"{row['minutes_at_100_megabits']:.1f}", f"{row['megabytes_per_second_of_published']:.0f}",
       *(f"{minutes:.1f} min" for minutes in ours))
    )  # fmt: skip
  shorter = sum(row["minutes_at_100_megabits"] > row["minutes"] for row in result["rows"])
  both = sum(row["minutes_at_100_megabits"] / 2 > row["minutes"] for row in result["rows"])
  every = "all" if shorter == len(lines) else f"{shorter} of"
  return (
    tables.text(head, lines, left=(0, 1))
    + f"\nOn the stated line of 100 Mbit/s {every} {len(lines)} published latencies are shorter than their own bytes "
    f"take, {both} even where both directions run at once,\nand without a round trip: taken on a faster line. "
    "Ours includes the computation of two cores; the paper had 32 threads."
  )


def _errors(result) -> str:
  lines = [
    (e["file"].removesuffix(".json"), f"{e['total_bytes'] / 1e6:,.1f}", f"{e['rounds']:,.0f}",
     *(f"{100 * e['relative_error'][name]:+.1f} %" for name in ("total_bytes", "rounds")))
    for e in result["errors"]
  ]  # fmt: skip
  return tables.text(("engine run", "MB", "rounds", "predicted: bytes", "rounds"), lines)


def pictures(result: Mapping) -> dict[str, Figure]:
  """bytes: stacked by operation, with the published marks; latency: against bandwidth."""
  first = [row for row in result["rows"] if row["table"] == 3 and not row["model"].startswith("EReg")]
  bars, marks = {}, {}
  for row in first:
    for kind in KINDS:
      bars[f"{row['model']}, {kind}"] = row[kind]["by_operation"]
    marks[f"{row['model']}, stock"] = row["gigabytes"] * 1e9
  curves = {
    f"{row['model']}, {kind}": (BANDWIDTHS, [latency(row[kind], b, 80.0) for b in BANDWIDTHS])
    for row in first
    for kind in KINDS
  }
  points = {row["model"]: (100.0, row["minutes"] * 60) for row in first}
  title = "12 layers, 128 tokens, round trips of 80 ms, computation of two cores"
  return {"bytes": costs.bytes_by_operation(bars, marks), "latency": costs.latency(curves, points, title)}
