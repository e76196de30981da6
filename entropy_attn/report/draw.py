"""What figures are made of: heatmaps, stacked head shares, curves and colour bars, each drawn on given axes."""

from collections.abc import Sequence
import math

from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import text_to_path
import numpy as np

from entropy_attn.report import style

BINS = ("0 … Max/4", "Max/4 … Max/2", "Max/2 … 3Max/4", "3Max/4 … Max")


def array(entropy) -> np.ndarray:
  """Float64, with JSON's null as NaN."""
  return np.asarray(entropy, dtype=np.float64)


def is_finite(value: float | None) -> bool:
  """Whether a figure of a run is a number; JSON holds None for one that is not."""
  return value is not None and math.isfinite(value)


def every(count: int, most: int) -> np.ndarray:
  """At most `most` evenly spaced indices below count, from 0."""
  return np.arange(0, count, math.ceil(count / most))


def fitted(text: str, width: float, size: float, least: float = 5.0, bold: bool = False) -> tuple[str, float]:
  """A line of text that is at most `width` inches: set smaller where it must be, then cut short; and its font size."""
  size = min(size, max(least, width / max(text_width(text, 1, bold), 1e-9)))
  if text_width(text, size, bold) <= 1.001 * width:
    return text, size
  while len(text) > 1 and text_width(text + "…", size, bold) > width:
    text = text[:-1]
  return text + "…", size


def text_width(text: str, size: float, bold: bool = False) -> float:
  """Inches of a line of text, at a font size in points."""
  font = FontProperties(weight="bold" if bold else "normal", size=100)
  return text_to_path.get_text_width_height_descent(text, font, False)[0] / 7200 * size


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
  """Places as near as may be to the wanted ones, in their order, at least `gap` apart and within low … high.

  Neighbours that would touch form a group about the mean of what they want. They must fit: (n−1) gap ≤ high − low.
  """
  groups: list[list[int]] = []
  middle = lambda group: np.clip(np.mean([wanted[i] for i in group]), low + _half(group), high - _half(group))
  _half = lambda group: gap * (len(group) - 1) / 2
  for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
    groups.append([i])
    while len(groups) > 1 and middle(groups[-1]) - middle(groups[-2]) < _half(groups[-1]) + _half(groups[-2]) + gap:
      last = groups.pop()
      groups[-1] += last
  places = [0.0] * len(wanted)
  for group in groups:
    for k, i in enumerate(group):
      places[i] = float(middle(group) - _half(group) + k * gap)
  return places


def heatmap(
  axes: Axes, values: np.ndarray, scale: tuple[float, float], fontsize: float | None = None, labels: float = 8
) -> None:
  """Cells [L, H], the first layer on top, each a vector rectangle; hatched where not finite.

  Args:
    scale: the ends of the colour map.
    fontsize: of the cells' values, points; None leaves them out.
    labels: font size of the ticks; the axes' names are one larger.
  """
  layers, heads = values.shape
  norm = colors.Normalize(*scale)
  edges = np.arange(heads + 1) - 0.5, np.arange(layers + 1) - 0.5
  gap = 0.8 if max(layers, heads) <= 24 else 0.3
  axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=style.CMAP, norm=norm, edgecolors="white", linewidth=gap)
  for layer, head in np.ndindex(values.shape):
    value = values[layer, head]
    if not np.isfinite(value):
      axes.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, **style.NONFINITE))
    if fontsize and np.isfinite(value):
      color = style.ink_on(style.CMAP(norm(value)))
      axes.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=fontsize, color=color)
    elif fontsize:
      box = {"facecolor": style.NONFINITE["facecolor"], "linewidth": 0, "pad": 1.5}
      axes.text(head, layer, "nan", ha="center", va="center", fontsize=fontsize, color=style.INK, bbox=box)
  axes.set(xlim=(-0.5, heads - 0.5), ylim=(layers - 0.5, -0.5))
  axes.set_xticks(every(heads, 16 if labels >= 8 else 6))
  axes.set_yticks(every(layers, 18 if labels >= 8 else 8))
  axes.tick_params(which="both", length=0, labelsize=labels, labelcolor=style.INK)
  axes.spines[:].set_visible(False)
  axes.set_xlabel("head", fontsize=labels + 1, color=style.INK)
  axes.set_ylabel("layer", fontsize=labels + 1, color=style.INK)


def shares(
  axes: Axes,
  position: float,
  fractions: Sequence[float | None],
  width: float,
  upright: bool = False,
  fontsize: float = 8,
) -> bool:
  """One stacked bar of head shares, in per cent; what they lack to one is hatched.

  Args:
    position: of the bar's middle, across.
    fractions: of the heads in each quarter of Max.
    width: of the bar, across.
    upright: whether it stands.
    fontsize: of the numbers in it.

  Returns:
    Whether some heads were not finite.
  """
  start = 0.0
  for share, color in zip(array(fractions), style.BIN_COLORS, strict=True):
    _bar(axes, position, 100 * share, start, width, upright, color=color, edgecolor="white", linewidth=0.8)
    if share >= 0.05:
      at = start + 50 * share
      x, y = (position, at) if upright else (at, position)
      look = {"ha": "center", "va": "center_baseline", "fontsize": fontsize, "color": style.ink_on(color)}
      axes.text(x, y, f"{100 * share:.0f}", **look)
    start += 100 * share
  if start < 99.95:
    _bar(axes, position, 100 - start, start, width, upright, **style.NONFINITE)
  return start < 99.95


def shares_legend(gap: bool) -> list[Patch]:
  """The legend's entries of head shares; gap: whether a bar is hatched."""
  entries = [Patch(color=color, label=label) for color, label in zip(style.BIN_COLORS, BINS, strict=True)]
  return entries + ([Patch(**style.NONFINITE, label="not finite")] if gap else [])


def _bar(axes: Axes, position: float, length: float, start: float, width: float, upright: bool, **look) -> None:
  if upright:
    axes.bar(position, length, width, bottom=start, **look)
  else:
    axes.barh(position, length, width, left=start, **look)


def curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color, linewidth: float = 1.7, **look) -> None:
  """A line over steps that stops at a cross where its values cease to be finite."""
  finite = np.isfinite(values)
  look = {"marker": "o" if len(steps) <= 12 else None, "markersize": 2 * linewidth} | look
  axes.plot(steps, values, color=color, linewidth=linewidth, **look)
  ends = np.flatnonzero(finite[:-1] & ~finite[1:])
  cross = {"marker": "x", "markersize": 4 + 2 * linewidth, "markeredgewidth": 1.8}
  axes.plot(steps[ends], values[ends], linestyle="none", color=color, **cross)


def tidy(axes: Axes, grid: str | None = None, labels: float = 8) -> None:
  """Two spines, small ticks, and a grid across the axis named."""
  if grid:
    axes.grid(axis=grid, color=style.GRID, linewidth=0.6)
    axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(style.MUTED)
  axes.tick_params(colors=style.MUTED, labelcolor=style.INK, labelsize=labels)


def entropy_ticks(bar, max_entropy: float) -> None:
  """A colour bar's ticks at the edges of the head bins."""
  bar.set_ticks([max_entropy * k / 4 for k in range(5)], labels=[f"{max_entropy * k / 4:.2f}" for k in range(5)])
  bar.set_label("entropy (nats)", color=style.INK, fontsize=9)
  plain_bar(bar)


def plain_bar(bar) -> None:
  """A colour bar without frame and tick marks."""
  bar.outline.set_visible(False)
  bar.solids.set(rasterized=False, edgecolor="face")  # a colour bar of many colours would be pixels in a PDF
  bar.ax.tick_params(length=0, labelsize=8, labelcolor=style.INK)
