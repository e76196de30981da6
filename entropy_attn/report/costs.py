"""Figures of private inference: bytes by operation, and latency against bandwidth."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from entropy_attn.report import style


def bytes_by_operation(
  bars: Mapping[str, Mapping[str, Mapping]], marks: Mapping[str, float] | None = None, unit: float = 1e9
) -> Figure:
  """A stacked bar for each label: bytes of an inference, both ways, by operation.

  Args:
    bars: by label, the `by_operation` of a profile or a prediction.
    marks: by label, published bytes, drawn as a line across the bar.
    unit: of the axis: 1e6 or 1e9 bytes.
  """
  labels = list(bars)
  figure, axes = _axes(9.2, 1.7 + 0.56 * len(labels))
  present = [name for name in style.OPERATION_COLORS if any(name in bar for bar in bars.values())]
  left = np.zeros(len(labels))
  for name in present:
    sizes = np.array([bar.get(name, {}).get("bytes", 0) / unit for bar in bars.values()])
    axes.barh(labels, sizes, 0.66, left=left, label=name, color=style.OPERATION_COLORS[name], edgecolor="white", lw=0.4)
    left += sizes
  for i, (label, total) in enumerate(zip(labels, left, strict=True)):
    axes.text(total, i, f" {total:.2f}" if unit == 1e9 else f" {total:,.0f}", va="center", fontsize=8, color=style.INK)
    if marks and label in marks:
      mark = marks[label] / unit
      axes.plot([mark] * 2, [i - 0.42, i + 0.42], color=style.INK, lw=1.6)
      axes.text(mark, i - 0.44, f"{mark:.2f} published", fontsize=7, ha="center", va="bottom", color=style.INK)
  axes.invert_yaxis()
  axes.set_xlim(0, 1.12 * max(*left, *(mark / unit for mark in (marks or {}).values()), 0))
  axes.set_xlabel(f"{'GB' if unit == 1e9 else 'MB'}, both ways", color=style.MUTED)
  _tidy(axes, "x")
  figure.legend(*axes.get_legend_handles_labels(), ncols=6, fontsize=7.5, frameon=False, loc="outside upper left")
  return figure


def latency(
  curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], points: Mapping[str, tuple[float, float]], title: str
) -> Figure:
  """Seconds of an inference against the bandwidth of the line.

  Args:
    curves: by label, Mbit/s and seconds.
    points: by label, the published bandwidth and seconds.
  """
  figure, axes = _axes(7.4, 4.6)
  colors = dict(zip(points, style.LINE_COLORS, strict=False))
  for label, (bandwidths, seconds) in curves.items():
    model, _, kind = label.rpartition(", ")
    axes.plot(bandwidths, seconds, "--" if kind == "stock" else "-", label=label, color=colors[model], lw=1.8)
  for label, (bandwidth, seconds) in points.items():
    axes.plot([bandwidth], [seconds], "x", label=f"{label}, published, 32 threads", color=colors[label], ms=8, mew=2)
  axes.set(xscale="log", yscale="log")
  axes.set_xlabel("bandwidth, Mbit/s", color=style.MUTED)
  axes.set_ylabel("seconds", color=style.MUTED)
  axes.set_title(title, fontsize=9, loc="left", color=style.INK)
  _tidy(axes, "both")
  axes.legend(fontsize=7.5, frameon=False)
  return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(width, height), dpi=style.DPI, facecolor="white", layout="constrained")
  return figure, figure.add_subplot()


def profile(result: Mapping) -> Figure:
  """The bytes of one profile: a bar for each layer, by operation."""
  bars = {f"layer {name}" if name.isdigit() else name: groups for name, groups in result["by_layer"].items()}
  figure = bytes_by_operation({name: groups["by_operation"] for name, groups in bars.items()}, unit=1e6)
  title = f"{result['architecture']}, {result['length']} tokens: {result['total_bytes'] / 1e6:,.0f} MB"
  figure.axes[0].set_title(title, fontsize=9, loc="left", color=style.INK)
  return figure


def _tidy(axes, grid: str) -> None:
  axes.grid(axis=grid, color=style.GRID, lw=0.6)
  axes.set_axisbelow(True)
  axes.tick_params(colors=style.MUTED, labelsize=8)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
