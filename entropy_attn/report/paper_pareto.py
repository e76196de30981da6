"""Perplexity against what a private inference costs: bytes and seconds, ours and, below, as published."""

from collections.abc import Sequence
import dataclasses
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
import numpy as np

from entropy_attn.report import draw, style
from entropy_attn.report.paper_page import TEXT, first_of_each
from entropy_attn.report.paper_runs import PaperRun

# Inches. Labels stand in a column at the right, one a row, so that none can lie on another.
_LEFT, _PANEL, _GAP, _LEADER, _LABELS = 0.62, 1.98, 0.16, 0.3, 2.05
_ABOVE, _BELOW, _LINE = 0.22, 0.5, 0.145


@dataclasses.dataclass(frozen=True)
class _Point:
  """A model's place: costs are (GB, seconds), in all and, where known, of what is done with the prompt.

  perplexity is None where training broke down before an evaluation, total where there is no price. What broke down
  later, or with some seed, is marked, and is on no front.
  """

  label: str
  perplexity: float | None
  spread: float
  total: tuple[float, float] | None
  online: tuple[float, float] | None
  look: dict
  broke: bool = False


def points(runs: Sequence[PaperRun]) -> list[_Point]:
  """Of the runs that have a perplexity, or broke down."""
  return [_measured(run) for run in runs if run.diverged or draw.is_finite(run.row["perplexity"])]


def pareto(runs: Sequence[PaperRun]) -> Figure:
  """Perplexity against predicted gigabytes and seconds on a WAN of a private inference, and as published.

  Filled marks: all of it; open: what is done with the prompt; lines: the fronts, which no model is left and below of.
  """
  blocks = [(points(runs), ("predicted, GB both ways", "predicted, seconds on a WAN"))]
  printed = [point for run in runs if (point := _printed(run))]
  printed = first_of_each(printed, lambda point: (point.label, point.perplexity, point.total))
  if len(printed) > 1:  # one point has no front
    blocks.append((printed, ("published, GB both ways", "published, seconds on a WAN")))
  heights = [_height(block) for block, _ in blocks]
  height = 0.15 + sum(above + body + _ABOVE + _BELOW for above, body in heights)
  figure = Figure(figsize=(style.PRINT_WIDTH, height), dpi=style.PRINT_DPI, facecolor="white")
  top = height - 0.15
  for (block, titles), (above, body) in zip(blocks, heights, strict=True):
    _block(figure, block, titles, top - _ABOVE, above, body)
    top -= above + body + _ABOVE + _BELOW
  figure.legend(handles=_legend(), ncols=4, loc="upper left", bbox_to_anchor=(0.0, 1.0), fontsize=7, frameon=False,
                columnspacing=1.6)  # fmt: skip
  return figure


def _legend() -> list[Line2D]:
  mark = {"linestyle": "none", "marker": "o", "color": style.INK, "markersize": 5}
  return [
    Line2D([], [], **mark, label="in all"),
    Line2D([], [], **mark, markerfacecolor="white", label="of it with the prompt"),
    Line2D([], [], color=style.MUTED, linewidth=1.2, label="front, in all"),
    Line2D([], [], color=style.MUTED, linewidth=1.2, linestyle="dashed", label="front, with the prompt"),
  ]


def _measured(run: PaperRun) -> _Point:
  price, row = run.row["private"], run.row
  total = online = None
  if price:
    total = price["bytes"] / 1e9, price["wan_seconds"]
    if draw.is_finite(price.get("online_bytes")) and draw.is_finite(price.get("wan_online_seconds")):
      online = price["online_bytes"] / 1e9, price["wan_online_seconds"]
  perplexity = row["perplexity"] if draw.is_finite(row["perplexity"]) else None
  spread = row.get("perplexity_sd")
  spread = spread if draw.is_finite(spread) else 0.0
  return _Point(run.label, perplexity, spread, total, online, run.look, run.diverged)


def _printed(run: PaperRun) -> _Point | None:
  printed = run.row["published"] or {}
  if not all(draw.is_finite(printed.get(name)) for name in ("perplexity", "gigabytes", "minutes")):
    return None
  cost = printed["gigabytes"], 60 * printed["minutes"]
  return _Point(run.row["architecture"], printed["perplexity"], 0.0, cost, None, run.look)


def _height(block: Sequence[_Point]) -> tuple[float, float]:
  """Inches of the strip of those that broke down, and of the axes, which hold a label for each of the others."""
  broken = sum(point.perplexity is None for point in block)
  return (broken + 0.5) * _LINE if broken else 0.0, max(1.9, (len(block) - broken + 1) * _LINE)


def _block(figure: Figure, block, titles: tuple[str, str], top: float, above: float, body: float) -> None:
  """Two panels of one perplexity axis, the strip above them, and the labels beside; `top` in inches from below."""
  width, height = figure.get_size_inches()
  place = lambda x, y, w, h: figure.add_axes((x / width, y / height, w / width, h / height))
  alive = [point for point in block if point.perplexity is not None]
  broken = [point for point in block if point.perplexity is None]
  bottom = top - above - body
  side = _LEFT + 2 * _PANEL + _GAP  # where the labels' leaders begin
  limits = _limits(alive)
  for column, title in enumerate(titles):
    left = _LEFT + column * (_PANEL + _GAP)
    axes = place(left, bottom, _PANEL, body)
    _perplexity_axis(axes, limits, named=column == 0)
    if not alive:
      axes.set_yticks([])  # no perplexity, no scale
    axes.set_xlabel(title, fontsize=TEXT, color=style.INK)
    strip = place(left, bottom + body, _PANEL, above) if broken else None
    if strip:
      _strip(strip, broken, column, named=column == 0)
    _cost_axis([axes, strip] if strip else [axes], block, column)
    _panel(axes, alive, column)
  labels = place(side, bottom, _LEADER + _LABELS, body + above)
  labels.set(xlim=(0, _LEADER + _LABELS), ylim=(0, body + above))
  labels.set_axis_off()
  own = [_fraction(point.perplexity, limits) * body for point in alive]
  for point, at, to in zip(alive, own, draw.spread(own, _LINE, 0.5 * _LINE, body - 0.5 * _LINE), strict=True):
    _label(labels, point, at, to, f"{point.perplexity:.2f}" if point.perplexity < 1000 else f"{point.perplexity:.3g}")
  for i, point in enumerate(broken):
    _label(labels, point, body + (i + 0.5) * _LINE, body + (i + 0.5) * _LINE, "diverged")


def front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Of (cost, perplexity), those that no other has both lower or equal and one of them lower; by cost."""
  best, found = math.inf, []
  for cost, perplexity in sorted(places):
    if perplexity < best:
      found.append((cost, perplexity))
      best = perplexity
  return found


def _limits(alive: Sequence[_Point]) -> tuple[float, float, bool]:
  """Of the perplexities' axis, and whether it is logarithmic: where the largest is more than four times the least."""
  low = min((point.perplexity - point.spread for point in alive), default=1.0)
  high = max((point.perplexity + point.spread for point in alive), default=2.0)
  if low > 0 and high > 4 * low:
    return low / 1.15, high * 1.15, True
  margin = 0.08 * (high - low) or 0.05 * high
  return low - margin, high + margin, False


def _fraction(value: float, limits: tuple[float, float, bool]) -> float:
  low, high, log = limits
  return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def _perplexity_axis(axes: Axes, limits: tuple[float, float, bool], named: bool) -> None:
  low, high, log = limits
  if log:
    axes.set_yscale("log")
    _plain_log(axes.yaxis, high / low)
  else:
    axes.yaxis.set_major_locator(MaxNLocator(6))
  axes.set_ylim(low, high)
  axes.set_ylabel("perplexity" if named else "", fontsize=TEXT, color=style.INK)
  draw.tidy(axes, labels=7)
  axes.tick_params(which="minor", color=style.MUTED)
  axes.tick_params(axis="y", labelleft=named)


def _cost_axis(together: Sequence[Axes], block: Sequence[_Point], column: int) -> None:
  """One scale for a panel and its strip: logarithmic where the costs span more than a factor of eight."""
  costs = [cost[column] for point in block for cost in (point.total, point.online) if cost]
  low, high = min(costs, default=1.0), max(costs, default=1.0)
  for axes in together:
    if low > 0 and high > 8 * low:
      axes.set_xscale("log")
      _plain_log(axes.xaxis, high / low)
      axes.set_xlim(low / 1.3, high * 1.3)
    else:
      axes.set_xlim(0, 1.12 * high)


def _plain_log(axis, span: float) -> None:
  """Ticks as plain numbers: at 1, 2, 5 and their tens, or at powers of ten where the axis spans a factor of 30."""
  axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 30 else (1.0,), numticks=6))
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}"))
  axis.set_minor_formatter(NullFormatter())


def _panel(axes: Axes, alive: Sequence[_Point], column: int) -> None:
  for which, dashes in (("total", "solid"), ("online", "dashed")):
    sound = [point for point in alive if not point.broke]
    places = [(cost[column], point.perplexity) for point in sound if (cost := getattr(point, which))]
    if best := front(places):
      x, y = np.transpose([(best[0][0], axes.get_ylim()[1]), *best, (axes.get_xlim()[1], best[-1][1])])
      axes.step(x, y, where="post", color=style.MUTED, linewidth=1.2, linestyle=dashes, zorder=1.5)
  for point in alive:
    color = point.look["color"]
    axes.axhline(point.perplexity, color=style.GRID, linewidth=0.5, zorder=0)
    if point.total and point.online:
      ends = [point.online[column], point.total[column]]
      axes.plot(ends, [point.perplexity] * 2, color=color, linewidth=0.7, alpha=0.6, zorder=2)
    for cost, face in ((point.online, "white"), (point.total, color)):
      if cost:
        axes.errorbar(cost[column], point.perplexity, point.spread or None, color=color, marker=point.look["marker"],
                      markersize=4.5, markerfacecolor=face, markeredgewidth=1, elinewidth=1, zorder=3)  # fmt: skip


def _strip(axes: Axes, broken: Sequence[_Point], column: int, named: bool) -> None:
  """Those without a perplexity, one a line: crosses at what they would cost."""
  axes.set(ylim=(0, len(broken) + 0.5), yticks=[], facecolor=style.STRIP)
  axes.spines[:].set_visible(False)
  axes.tick_params(which="both", bottom=False, labelbottom=False)
  for i, point in enumerate(broken):
    for cost in (point.total, point.online):
      if cost:
        axes.plot(cost[column], i + 0.5, "x", color=point.look["color"], markersize=5, markeredgewidth=1.5)


def _label(axes: Axes, point: _Point, at: float, to: float, value: str) -> None:
  """A leader from a point's height to its label, and the label: its mark, its name, its perplexity; inches."""
  color = point.look["color"]
  axes.plot([0, 0.06, _LEADER - 0.1, _LEADER - 0.03], [at, at, to, to], color=color, linewidth=0.6, clip_on=False)
  axes.plot(_LEADER + 0.04, to, marker=point.look["marker"], color=color, markersize=4.5)
  notes = ", diverged" * (point.broke and point.perplexity is not None) + ", no price" * (point.total is None)
  value = f" · {value}{notes}"
  text, size = draw.fitted(point.label + value, _LABELS - 0.16, 7, least=5)
  if text != point.label + value:  # the name is cut, not its perplexity
    text = draw.fitted(point.label, _LABELS - 0.16 - draw.text_width(value, size), size, least=size)[0] + value
  axes.text(_LEADER + 0.12, to, text, fontsize=size, color=style.INK, va="center_baseline")
