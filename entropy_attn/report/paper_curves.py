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
from entropy_attn.report.paper_page import TEXT, page, panel_title, panels, run_legend, run_lines
from entropy_attn.report.paper_runs import Course, PaperRun

_CROSS = {"marker": "x", "markersize": 7, "markeredgewidth": 1.8, "linestyle": "none"}


def figure2b(runs: Sequence[PaperRun]) -> Figure:
  """Loss of evaluations over steps: the mean of seeds in their range; and what was published of its end.

  A run that diverged is followed by its training loss, thin, to the cross where it broke down.
  """
  printed = [run for run in runs if run.published_loss is not None]
  figure = page(3.1 + 0.14 * math.ceil(len(runs) / 3))
  axes, beside = figure.subplots(1, 2, width_ratios=(3.4, 1)) if printed else (figure.subplots(), None)
  for run in runs:
    _loss(axes, run)
  axes.set_xlabel("training step", fontsize=TEXT, color=style.INK)
  axes.set_ylabel("evaluation loss (nats a token)", fontsize=TEXT, color=style.INK)
  draw.tidy(axes, "y", 7)
  if beside:
    _published_losses(beside, printed)
  run_legend(figure, axes)
  return figure


def _loss(axes: Axes, run: PaperRun) -> None:
  color = run.look["color"]
  label = f"{run.label}, diverged" if run.diverged else run.label
  steps, mean, low, high = _over_seeds([course.evaluated for course in run.courses])
  finite = np.isfinite(mean)
  if len(run.courses) > 1:
    axes.fill_between(steps, low, high, where=finite, color=color, alpha=0.2, linewidth=0)
  look = run.look | {"markersize": 4, "markevery": max(1, len(steps) // 12)}
  axes.plot(steps, mean, linewidth=1.5, label=label, **look)
  for course in run.courses:
    if course.broke:
      steps, losses = course.trained
      axes.plot(steps, losses, color=color, linewidth=0.7, linestyle=run.look["linestyle"])
      last = np.flatnonzero(np.isfinite(losses))[-1:]
      axes.plot(steps[last], losses[last], color=color, **_CROSS)


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


def _published_losses(axes: Axes, runs: Sequence[PaperRun]) -> None:
  """One mark a run, at the logarithm of the perplexity that was printed; a cross where that was NaN."""
  losses = [run.published_loss for run in runs]
  finite = [loss for loss in losses if math.isfinite(loss)]
  top = max(finite, default=1.0) * 1.06
  for x, (run, loss) in enumerate(zip(runs, losses, strict=True)):
    color = run.look["color"]
    if math.isfinite(loss):
      axes.plot(x, loss, **style.PUBLISHED | {"color": color})
    else:
      axes.plot(x, top, color=color, **_CROSS)
      axes.annotate(
        "NaN", (x, top), xytext=(0, 6), textcoords="offset points", fontsize=6.5, ha="center", color=style.INK
      )
  axes.set_xticks(range(len(runs)), [draw.fitted(run.row["architecture"], 1.15, 7)[0] for run in runs], rotation=70,
                  ha="right", rotation_mode="anchor")  # fmt: skip
  axes.set_xlim(-0.7, len(runs) - 0.3)
  axes.margins(y=0.15)
  axes.set_title("published, at the end", fontsize=TEXT, color=style.INK, loc="left")
  axes.set_ylabel("loss (log PPL)", fontsize=TEXT, color=style.INK)
  draw.tidy(axes, "y", 7)


def figure5(runs: Sequence[PaperRun]) -> Figure:
  """Mean entropy of each layer over steps, a panel for each run: the first seed in the range of all."""
  return _layers([(run, *run_lines(run)) for run in runs])


def figure8(runs: Sequence[PaperRun]) -> Figure:
  """Mean entropy of each layer over steps, a panel for each gamma."""
  runs = sorted(runs, key=lambda run: run.row["gamma"])
  return _layers([(run, f"γ = {run.row['gamma']:.2f}", " · ".join(run_lines(run)[::-1])) for run in runs])


def _layers(shown: Sequence[tuple[PaperRun, str, str]]) -> Figure:
  rows, columns = panels(len(shown))
  figure = page(rows * (2.6 if columns == 1 else 2.1 if columns < 4 else 1.75) + 0.3)
  grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
  ceiling = max(run.ceiling for run, *_ in shown)
  width = (style.PRINT_WIDTH - 1.2) / columns - 0.15
  for i, axes in enumerate(grid.flat):
    if i >= len(shown):
      axes.set_axis_off()
      continue
    run, first, second = shown[i]
    axes.axhline(run.ceiling, color=style.MUTED, linestyle=(0, (5, 3)), linewidth=0.8)
    _layer_lines(axes, run.courses)
    panel_title(axes, width, first, second)
    axes.set_ylim(0, 1.06 * ceiling)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    draw.tidy(axes, "y", 7)
    axes.tick_params(axis="x", labelbottom=i + columns >= len(shown))
  figure.supxlabel("training step", fontsize=TEXT, color=style.INK)
  figure.supylabel("mean entropy of a layer's heads (nats); dashed: causal ceiling", fontsize=TEXT, color=style.INK)
  _layer_bar(figure, grid, {run.row["model"]["num_layers"] for run, *_ in shown})
  return figure


def _shade(layer: int, layers: int):
  """A layer's colour by its depth; short of the map's end, which is lost on white."""
  return style.CMAP(0.88 * layer / max(layers - 1, 1))


def _layer_lines(axes: Axes, courses: Sequence[Course]) -> None:
  first = courses[0]
  entropy_SxL = first.entropy_SxLxH.mean(axis=2)
  layers = entropy_SxL.shape[1]
  for layer in range(layers):
    color = _shade(layer, layers)
    if len(courses) > 1:
      curves = [(course.steps, course.entropy_SxLxH[:, layer].mean(axis=1)) for course in courses]
      steps, _, low, high = _over_seeds(curves)
      axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    values = entropy_SxL[:, layer]
    draw.curve(axes, first.steps, values, color, 1.2)
    if first.broke and np.isfinite(values[-1]):  # the loss or a gradient broke down, not this layer's entropy
      axes.plot(first.steps[-1], values[-1], color=color, **_CROSS)


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
