"""Figures 2a, 3, 6 and 7 of the paper: what the heads are like at the end of training, ours beside the published."""

from collections.abc import Sequence
import math

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
import numpy as np

from entropy_attn import published
from entropy_attn.report import draw, style
from entropy_attn.report.paper_page import TEXT, page, panel_titles, panels, run_legend, run_lines
from entropy_attn.report.paper_runs import PaperRun


def figure2a(runs: Sequence[PaperRun], max_entropy: float) -> Figure:
  """Head shares as stacked bars, and the top quarter with its seeds and what was published.

  Where Figure 2a printed all four shares of an architecture they are a bar of their own below ours.
  """
  figure = page(0.34 * len(runs) + 1.3)
  bars, tops = figure.subplots(1, 2, width_ratios=(3, 1.5), sharey=True)
  gaps = []
  for y, run in enumerate(runs):
    printed = run.published_shares
    shares = run.row["head_shares"] or [0.0] * 4
    gaps.append(draw.shares(bars, y - 0.18 if printed else y, shares, 0.4 if printed else 0.7))
    if printed:
      draw.shares(bars, y + 0.22, np.divide(printed, 100), 0.3, fontsize=7)
      bars.annotate("published", (100, y + 0.22), xytext=(2, 0), textcoords="offset points", fontsize=5.5, va="center",
                    color=style.MUTED, annotation_clip=False)  # fmt: skip
    _top_quarter(tops, run, y, max_entropy)
  _run_labels(bars, runs)
  bars.set(xlim=(0, 100), ylim=(len(runs) - 0.45, -0.55))
  bars.set_xlabel(f"share of heads (%), Max = {max_entropy:.2f} nats for all", fontsize=TEXT, color=style.INK)
  bars.tick_params(length=0, labelsize=7, labelcolor=style.INK)
  bars.spines[:].set_visible(False)
  tops.set_xlim(-4, 104)
  tops.set_xlabel("heads in 3Max/4 … Max (%)", fontsize=TEXT, color=style.INK)
  draw.tidy(tops, "x", 7)
  tops.tick_params(axis="y", length=0, labelleft=False)
  _shares_legend(figure, runs, any(gaps), any(run.published_top is not None for run in runs))
  return figure


def _run_labels(axes: Axes, runs: Sequence[PaperRun]) -> None:
  """Beside each bar, its run: no wider than a fifth of the page."""
  axes.set_yticks(range(len(runs)), [""] * len(runs))
  widest = 0.22 * style.PRINT_WIDTH
  labels = [draw.fitted(f"{run.label}, diverged" if run.diverged else run.label, widest, 7.5) for run in runs]
  axes.set_yticklabels([text for text, _ in labels])
  for tick, (_, size) in zip(axes.get_yticklabels(), labels, strict=True):
    tick.set_fontsize(size)


def _top_quarter(axes: Axes, run: PaperRun, y: float, max_entropy: float) -> None:
  """The mean, each seed, and the published share of the heads in the highest quarter of Max, per cent."""
  seeds = 100 * run.shares_of_seeds(max_entropy)[:, 3]
  if len(seeds) > 1:
    axes.plot([seeds.min(), seeds.max()], [y, y], color=style.MUTED, linewidth=1)
    axes.plot(seeds, [y] * len(seeds), "|", color=style.MUTED, markersize=6, markeredgewidth=1)
  if run.row["head_shares"]:
    axes.plot(100 * run.row["head_shares"][3], y, "o", color=style.INK, markersize=5)
  else:
    axes.plot(0, y, "x", color=style.INK, markersize=6, markeredgewidth=1.6)
  if run.published_top is not None:
    axes.plot(run.published_top, y + (0.22 if run.published_shares else 0), linestyle="none", **style.PUBLISHED)


def _shares_legend(figure: Figure, runs: Sequence[PaperRun], gap: bool, marks: bool) -> None:
  entries = draw.shares_legend(gap)
  ours = "ours (bar: seeds)" if any(len(run.courses) > 1 for run in runs) else "ours"
  entries.append(Line2D([], [], linestyle="none", marker="o", color=style.INK, label=ours))
  if marks:
    entries.append(Line2D([], [], linestyle="none", **style.PUBLISHED, label="published"))
  figure.legend(handles=entries, ncols=4 if len(entries) > 6 else len(entries), loc="outside upper center",
                fontsize=7, frameon=False, handlelength=1.1, columnspacing=1.4)  # fmt: skip


def figure3(runs: Sequence[PaperRun], max_entropy: float) -> Figure:
  """A heatmap of the heads' entropies for each run, all on one scale; beside SM the published one (Figure 3f)."""
  cells = []
  for run in runs:
    shape = run.row["model"]["num_layers"], run.row["model"]["num_heads"]
    entropy = np.full(shape, np.nan) if run.row["entropy_LxH"] is None else draw.array(run.row["entropy_LxH"])
    cells.append((entropy, *run_lines(run)))
    if run.row["architecture_row"] == "sm":
      cells.append((draw.array(published.FIGURE_3F), "SM, published", "Figure 3f, 12 layers"))
      max_entropy = max(max_entropy, published.MAX_ENTROPY)
  figure = page(0.1 + _grid_height(len(cells)))
  grid = _heatmaps(figure, cells, (0, max_entropy))
  scale = ScalarMappable(Normalize(0, max_entropy), style.CMAP)
  draw.entropy_ticks(figure.colorbar(scale, ax=grid, fraction=0.03, pad=0.01, aspect=34), max_entropy)
  return figure


def figure6(runs: Sequence[PaperRun]) -> Figure:
  """The learned threshold weights of the heads, and their mean and variance by layer; beside ours the published ones.

  The published are those of Figure 6a: 12 layers on CodeParrot.
  """
  ours = [(draw.array(run.row["thresholds_LxH"]), *run_lines(run)) for run in runs]
  printed = draw.array(published.FIGURE_6A)
  cells = [*ours, (printed, "published", "Figure 6a, 12 layers")]
  finite = np.concatenate([values[np.isfinite(values)] for values, *_ in cells])
  scale = math.floor(20 * finite.min()) / 20, math.ceil(20 * finite.max()) / 20
  height = _grid_height(len(cells))
  figure = page(height + 2.3)
  above, below = figure.subfigures(2, 1, height_ratios=(height, 2.3))
  grid = _heatmaps(above, cells, scale)
  bar = above.colorbar(ScalarMappable(Normalize(*scale), style.CMAP), ax=grid, fraction=0.03, pad=0.01, aspect=34)
  bar.set_label("threshold weight θ, in parts of $E_{max}$", fontsize=TEXT, color=style.INK)
  draw.plain_bar(bar)
  mean, variance = below.subplots(1, 2)
  for axes, statistic, name in ((mean, np.mean, "mean"), (variance, np.var, "variance")):
    for run, (values, *_) in zip(runs, ours, strict=True):
      axes.plot(statistic(values, axis=1), **run.look, linewidth=1.4, markersize=3.5, label=run.label)
    look = style.PUBLISHED | {"markersize": 3.5}
    axes.plot(statistic(printed, axis=1), linestyle="dashed", linewidth=1, label="published", **look)
    axes.set_xlabel("layer", fontsize=TEXT, color=style.INK)
    axes.set_ylabel(f"{name} of a layer's θ", fontsize=TEXT, color=style.INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw.tidy(axes, "y", 7)
  variance.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
  variance.yaxis.get_offset_text().set_fontsize(7)
  run_legend(below, mean)
  return figure


def _grid_height(count: int) -> float:
  rows, columns = panels(count)
  return rows * min(2.9, 0.85 * (style.PRINT_WIDTH - 0.6) / columns + 0.45)


def _heatmaps(figure, cells: Sequence[tuple[np.ndarray, str, str]], scale: tuple[float, float]) -> list[Axes]:
  """A panel for each (values, first line, second line); values are written into cells that are large enough."""
  rows, columns = panels(len(cells))
  grid = figure.subplots(rows, columns, squeeze=False)
  width = (style.PRINT_WIDTH - 0.9) / columns - 0.3
  for i, axes in enumerate(grid.flat):
    if i >= len(cells):
      axes.set_axis_off()
      continue
    values = cells[i][0]
    draw.heatmap(axes, values, scale, _value_size(width / values.shape[1]), labels=7)
    axes.set(xlabel="", ylabel="")
  panel_titles([(axes, *lines) for axes, (_, *lines) in zip(grid.flat, cells, strict=False)], columns)
  figure.supxlabel("head", fontsize=TEXT, color=style.INK)
  figure.supylabel("layer", fontsize=TEXT, color=style.INK)
  return list(grid.flat)


def _value_size(cell: float) -> float | None:
  """Font size of a value in a cell so many inches wide; None where it would be too small to read."""
  size = min(7.0, 26 * cell)
  return size if size >= 5 else None


def figure7(runs: Sequence[PaperRun], max_entropy: float) -> Figure:
  """Head shares against gamma, and the highest quarter with its seeds beside the published percentages."""
  runs = sorted(runs, key=lambda run: run.row["gamma"])
  gammas = [run.row["gamma"] for run in runs]
  named = len(set(gammas)) < len(gammas)  # gamma alone does not tell them apart
  figure = page(4.6 if named else 3.5)
  bars, tops = figure.subplots(1, 2, width_ratios=(1.5, 1))
  size = min(8, max(5, 108 / len(runs)))  # points: three digits within a bar
  gaps = [draw.shares(bars, x, run.row["head_shares"] or [0.0] * 4, 0.78, True, size) for x, run in enumerate(runs)]
  names = []
  for run in runs:
    name = f"{run.row['gamma']:.2f}" + (f" {run.row['name']}" if named else "")
    names.append(draw.fitted(name, 1.3, 7, least=7)[0] + (" ×" if run.diverged else ""))
  bars.set_xticks(range(len(runs)), names, rotation=90 if named or len(runs) > 10 else 0)
  middle, half = (len(runs) - 1) / 2, max(len(runs), 4) / 2 + 0.1  # one bar alone is no wall
  bars.set(ylim=(0, 100), xlim=(middle - half, middle + half))
  bars.set_xlabel("γ" + (" (×: diverged)" if any(run.diverged for run in runs) else ""), fontsize=TEXT, color=style.INK)
  bars.set_ylabel(f"share of heads (%), Max = {max_entropy:.2f} nats", fontsize=TEXT, color=style.INK)
  bars.tick_params(length=0, labelsize=7, labelcolor=style.INK)
  bars.spines[:].set_visible(False)
  _top_against_gamma(tops, runs, max_entropy)
  _shares_legend(figure, runs, any(gaps), True)
  return figure


def _top_against_gamma(axes: Axes, runs: Sequence[PaperRun], max_entropy: float) -> None:
  """Per cent of the heads in the highest quarter of Max: ours with seeds, and Figure 7's."""
  ours = [(run.row["gamma"], 100 * run.row["head_shares"][3]) for run in runs if run.row["head_shares"]]
  for run in runs:
    seeds = 100 * run.shares_of_seeds(max_entropy)[:, 3]
    if len(seeds) > 1:
      gamma = [run.row["gamma"]] * len(seeds)
      axes.plot(gamma, seeds, "_", color=style.MUTED, markersize=7, markeredgewidth=1)
      axes.plot(gamma[:2], [seeds.min(), seeds.max()], color=style.MUTED, linewidth=1)
  distinct = len({gamma for gamma, _ in ours}) == len(ours)
  if ours:
    axes.plot(*zip(*ours, strict=True), "o-" if distinct else "o", color=style.INK, markersize=5, linewidth=1.2)
  gammas, percent = zip(*published.FIGURE_7.items(), strict=True)
  axes.plot(gammas, percent, linestyle="dashed", linewidth=1, **style.PUBLISHED)
  axes.plot([0, gammas[0]], [percent[0]] * 2, color=style.INK, linestyle="dotted", linewidth=1)  # at 0.15 and below
  axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
  axes.set_xlabel("γ", fontsize=TEXT, color=style.INK)
  axes.set_ylabel("heads in 3Max/4 … Max (%)", fontsize=TEXT, color=style.INK)
  draw.tidy(axes, "y", 7)
