"""Figures 2b, 5 and 8 of the paper: the course of training."""

from collections.abc import Sequence
import math

from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from entropy_attn.report import draw, style
from entropy_attn.report.paper_page import SMALL, TEXT, first_of_each, page, panel_titles, panels, run_legend, run_lines
from entropy_attn.report.paper_runs import Course, PaperRun

_CROSS = {"marker": "x", "markersize": 7, "markeredgewidth": 1.8, "linestyle": "none"}


def figure2b(runs: Sequence[PaperRun]) -> Figure:
  """Loss of evaluations over steps: the mean of seeds in their range; and what was published of its end.

  A run that diverged is followed by its training loss, thin, to the cross where it broke down.
  """
  printed = [run for run in runs if run.published_loss is not None]
  printed = first_of_each(printed, lambda run: (run.row["architecture"], str(run.published_loss)))
  body = max(2.4, 0.14 * len(printed))  # inches
  figure = page(body + 0.6 + 0.14 * math.ceil(len(runs) / 3))
  axes, beside = figure.subplots(1, 2, width_ratios=(1.9, 1)) if printed else (figure.subplots(), None)
  ends = [end for run in runs for end in _loss(axes, run)]
  if any(np.isfinite(course.evaluated[1]).any() for run in runs for course in run.courses):
    # The first steps of training, which only those show that diverged, would take up most of the axes.
    margin = 0.06 * (max(ends) - min(ends)) + 0.01
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
  axes.set_xlabel("training step", fontsize=TEXT, color=style.INK)
  axes.set_ylabel("evaluation loss (nats a token)", fontsize=TEXT, color=style.INK)
  draw.tidy(axes, "y", 7)
  if beside:
    _published_losses(beside, printed, body)
  run_legend(figure, axes)
  return figure


def _loss(axes: Axes, run: PaperRun) -> list[float]:
  """Draws a run; returns the losses that must be in sight."""
  color = run.look["color"]
  label = f"{run.label}, diverged (thin: training)" if run.diverged else run.label
  steps, mean, low, high = _over_seeds([course.evaluated for course in run.courses])
  finite = np.isfinite(mean)
  if len(run.courses) > 1:
    axes.fill_between(steps, low, high, where=finite, color=color, alpha=0.2, linewidth=0)
  look = run.look | {"markersize": 3.5, "markevery": max(1, len(steps) // 12)}
  axes.plot(steps, mean, linewidth=1.2, label=label, **look)
  ends = [*low[finite], *high[finite]]
  for course in run.courses:
    if course.broke:
      steps, losses = course.trained
      axes.plot(steps, losses, color=color, linewidth=0.7, linestyle=run.look["linestyle"])
      last = np.flatnonzero(np.isfinite(losses))[-1:]
      axes.plot(steps[last], losses[last], color=color, **_CROSS)
      ends += list(losses[last])
  return ends


def _over_seeds(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
  """Steps that any seed recorded, and the mean, least and largest over the seeds that are finite there; else NaN."""
  steps = np.unique(np.concatenate([steps for steps, _ in curves]))
  values = np.full((len(curves), len(steps)), np.nan)
  for row, (own, losses) in zip(values, curves, strict=True):
    row[np.searchsorted(steps, own)] = losses
  finite = np.isfinite(values)
  count = finite.sum(axis=0)
  mean = np.where(finite, values, 0).sum(axis=0) / np.where(count, count, 1)
  low, high = np.where(finite, values, np.inf).min(axis=0), np.where(finite, values, -np.inf).max(axis=0)
  return steps, *(np.where(count, each, np.nan) for each in (mean, low, high))


def _published_losses(axes: Axes, runs: Sequence[PaperRun], height: float) -> None:
  """One mark a run, at the logarithm of the perplexity that was printed, a cross where that was NaN; named beside.

  Args:
    height: of the axes, about, in inches: names stand at least a line apart.
  """
  losses = [run.published_loss for run in runs]
  finite = [loss for loss in losses if math.isfinite(loss)]
  low, high = min(finite, default=0.9), max(finite, default=1.0)
  margin = 0.12 * (high - low) or 0.1 * high
  low, high = low - margin, high + (2 if len(finite) < len(losses) else 1) * margin
  own = [loss if math.isfinite(loss) else high - 0.5 * margin for loss in losses]
  line = (high - low) * min(0.14 / height, 0.96 / max(len(runs) - 1, 1))
  for run, loss, at, to in zip(runs, losses, own, draw.spread(own, line, low, high), strict=True):
    color = run.look["color"]
    look = style.PUBLISHED | {"color": color, "linestyle": "none"} if math.isfinite(loss) else _CROSS | {"color": color}
    axes.plot(0, at, **look)
    axes.plot([0.1, 0.3], [at, to], color=color, linewidth=0.6)
    value = f"PPL {math.exp(loss):.2f}" if math.isfinite(loss) else "NaN"
    text, size = draw.fitted(f"{run.row['architecture']} · {value}", 1.5, 6.5)
    axes.text(0.34, to, text, fontsize=size, color=style.INK, va="center_baseline")
  axes.set(xlim=(-0.15, 2), ylim=(low, high), xticks=[])
  axes.set_xlabel("published, at the end", fontsize=TEXT, color=style.INK)
  axes.set_ylabel("loss (log PPL)", fontsize=TEXT, color=style.INK)
  draw.tidy(axes, labels=7)
  axes.spines["bottom"].set_visible(False)


def figure5(runs: Sequence[PaperRun]) -> Figure:
  """Mean entropy of each layer over steps, a panel for each run: the first seed in the range of all."""
  return _layers([(run, *run_lines(run)) for run in runs])


def figure8(runs: Sequence[PaperRun]) -> Figure:
  """Mean entropy of each layer over steps, a panel for each gamma."""
  runs = sorted(runs, key=lambda run: run.row["gamma"])
  distinct = len({run.row["gamma"] for run in runs}) == len(runs)
  second = lambda run: run.caption if distinct else f"{run.row['name']} · {run.caption}"
  return _layers([(run, f"γ = {run.row['gamma']:.2f}", second(run)) for run in runs])


def _layers(shown: Sequence[tuple[PaperRun, str, str]]) -> Figure:
  rows, columns = panels(len(shown))
  figure = page(rows * (2.6 if columns == 1 else 2.1 if columns < 4 else 1.75) + 0.3)
  grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
  ceiling = max(run.ceiling for run, *_ in shown)
  longest = max(course.steps[-1] for run, *_ in shown for course in run.courses)
  for i, axes in enumerate(grid.flat):
    if i >= len(shown):
      axes.set_axis_off()
      continue
    run = shown[i][0]
    axes.axhline(run.ceiling, color=style.MUTED, linestyle=(0, (5, 3)), linewidth=0.8)
    _layer_lines(axes, run.courses, longest)
    axes.set_ylim(0, 1.16 * ceiling)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    draw.tidy(axes, "y", 7)
    axes.tick_params(axis="x", labelbottom=i + columns >= len(shown))
  panel_titles([(axes, *lines) for axes, (_, *lines) in zip(grid.flat, shown, strict=False)], columns)
  grid.flat[0].annotate("causal ceiling", (1, shown[0][0].ceiling), xytext=(0, 2), textcoords="offset points",
                        xycoords=grid.flat[0].get_yaxis_transform(), ha="right", va="bottom", fontsize=SMALL,
                        color=style.MUTED)  # fmt: skip
  figure.supxlabel("training step", fontsize=TEXT, color=style.INK)
  figure.supylabel("mean entropy of a layer's heads (nats)", fontsize=TEXT, color=style.INK)
  _layer_bar(figure, grid, {run.row["model"]["num_layers"] for run, *_ in shown})
  return figure


def _shade(layer: int, layers: int):
  """A layer's colour by its depth; short of the map's end, which is lost on white."""
  return style.CMAP(0.88 * layer / max(layers - 1, 1))


def _layer_lines(axes: Axes, courses: Sequence[Course], longest: int) -> None:
  """The layers of the first seed in the range of all; longest: the last step in any panel."""
  first = courses[0]
  entropy_SxL = first.entropy_SxLxH.mean(axis=2)
  layers = entropy_SxL.shape[1]
  for layer in range(layers):
    color = _shade(layer, layers)
    if len(courses) > 1:
      curves = [(course.steps, course.entropy_SxLxH[:, layer].mean(axis=1)) for course in courses]
      steps, _, low, high = _over_seeds(curves)
      axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    draw.curve(axes, first.steps, entropy_SxL[:, layer], color, 1.2)
  if first.broke:
    axes.axvline(first.steps[-1], color=style.INK, linewidth=0.9, linestyle="dotted")
    right = first.steps[-1] < 0.7 * longest
    axes.annotate("diverged", (first.steps[-1], 0), xytext=(3 if right else -3, 3), textcoords="offset points",
                  ha="left" if right else "right", fontsize=SMALL, color=style.INK)  # fmt: skip


def _layer_bar(figure: Figure, grid: np.ndarray, depths: set[int]) -> None:
  """The layers' colours, the first on top; by number where all runs have as many."""
  layers = max(depths)
  shades = colors.ListedColormap([_shade(layer, layers) for layer in range(layers)])
  norm = colors.BoundaryNorm(np.arange(layers + 1) - 0.5, layers)
  bar = figure.colorbar(ScalarMappable(norm, shades), ax=list(grid.flat), fraction=0.025, pad=0.01, aspect=34)
  ticks = draw.every(layers, 12) if len(depths) == 1 else np.array([0, layers - 1])
  bar.set_ticks(ticks, labels=[str(tick) for tick in ticks] if len(depths) == 1 else ["first", "last"])
  bar.minorticks_off()
  bar.ax.invert_yaxis()
  bar.set_label("layer", fontsize=TEXT, color=style.INK)
  draw.plain_bar(bar)
