"""Figures of a run and of several: entropy heatmaps, layer curves, head shares.

Every function returns a matplotlib Figure of its own and leaves no state behind. The colour map is cividis, as
published, over 0 … Max, so that one colour means one entropy in all figures of a study.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib

from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.report import style, tables
from entropy_attn.run import folder, metrics

BINS = ("0 … Max/4", "Max/4 … Max/2", "Max/2 … 3Max/4", "3Max/4 … Max")


def heatmap(entropy_LxH, max_entropy: float, title: str) -> Figure:
  """Entropy of each head, layers downwards and heads to the right (Figure 3).

  Args:
    entropy_LxH: nats; a non-finite head is drawn hatched and reads "nan".
    max_entropy: the upper end of the colour scale, nats.
    title: its first line is set in bold, the rest smaller below.
  """
  entropy = _array(entropy_LxH)
  layers, heads = entropy.shape
  cell = min(0.5, max(0.16, 9 / max(heads, layers)))
  width, height = heads * cell * 1.12, layers * cell * 0.86
  margins = {"left": 0.72, "right": 1.15, "bottom": 0.62, "top": 0.86}  # inches
  total_width = max(width, 3.4) + margins["left"] + margins["right"]
  total_height = max(height, 1.4) + margins["bottom"] + margins["top"]
  figure = Figure(figsize=(total_width, total_height), dpi=style.DPI, facecolor="white")
  box = (
    margins["left"] / total_width,
    margins["bottom"] / total_height,
    1 - (margins["left"] + margins["right"]) / total_width,
    1 - (margins["bottom"] + margins["top"]) / total_height,
  )
  axes = figure.add_axes(box)
  _draw_heatmap(axes, entropy, max_entropy, 7.5 if cell >= 0.36 else None)
  bar = figure.add_axes((1 - 0.9 / total_width, box[1], 0.14 / total_width, box[3]))
  _entropy_bar(figure, bar, max_entropy)
  _title(figure, title, margins["left"] / total_width, total_height)
  return figure


def layer_curves(steps, entropy_SxLxH, ceiling: float, title: str) -> Figure:
  """Mean entropy of each layer over training steps (Figure 5).

  Args:
    steps: [S].
    entropy_SxLxH: nats. A layer with a non-finite head has no mean: its line stops there, at a cross.
    ceiling: nats, drawn dashed: the largest mean entropy that a causal head can have.
    title: as in `heatmap`.
  """
  steps, entropy_SxL = np.asarray(steps), _array(entropy_SxLxH).mean(axis=2)
  layers = entropy_SxL.shape[1]
  figure = Figure(figsize=(7.6, 4.5), dpi=style.DPI, facecolor="white")
  axes = figure.add_axes((0.085, 0.125, 0.775, 0.69))
  shades = colors.ListedColormap([style.CMAP(0.93 * l / max(layers - 1, 1)) for l in range(layers)])
  axes.axhline(ceiling, color=style.MUTED, linestyle=(0, (5, 3)), linewidth=1)
  axes.text(1, ceiling + 0.015 * ceiling, f"causal ceiling {ceiling:.2f} ", transform=axes.get_yaxis_transform(),
            ha="right", va="bottom", fontsize=8, color=style.MUTED)  # fmt: skip
  for layer in range(layers):
    _curve(axes, steps, entropy_SxL[:, layer], shades(layer))
  axes.set_ylim(0, 1.09 * ceiling)
  axes.set_xlim(steps.min(), max(steps.max(), steps.min() + 1))
  axes.set_xlabel("training step", color=style.INK)
  axes.set_ylabel("mean entropy of a layer's heads (nats)", color=style.INK)
  axes.grid(axis="y", color=style.GRID, linewidth=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(style.MUTED)
  axes.tick_params(colors=style.MUTED, labelcolor=style.INK, labelsize=8.5)
  bar_axes = figure.add_axes((0.89, 0.125, 0.02, 0.69))
  norm = colors.BoundaryNorm(np.arange(layers + 1) - 0.5, layers)
  bar = figure.colorbar(ScalarMappable(norm, shades), cax=bar_axes, ticks=_every(layers, 12))
  bar.minorticks_off()
  bar_axes.invert_yaxis()  # the first layer on top, as in the heatmaps
  bar.set_label("layer", color=style.INK, fontsize=9)
  _plain_bar(bar)
  _title(figure, title, 0.085, 4.5)
  return figure


def comparison(runs: Sequence[Mapping], max_entropy: float) -> Figure:
  """Heatmaps side by side and the head shares of several runs as stacked bars (Figures 2a and 3).

  Args:
    runs: mappings with name, architecture, perplexity (None where not finite), entropy_LxH (nats) and head_shares
      (four fractions against max_entropy; what they lack to one is drawn as "not finite").
    max_entropy: the one Max of all runs, nats.
  """
  columns = min(len(runs), 4)
  rows = math.ceil(len(runs) / columns)
  bars = 0.34 * len(runs) + 1.15
  figure = Figure(figsize=(max(2.75 * columns + 0.9, 7.6), 2.75 * rows + bars), dpi=style.DPI, facecolor="white")
  figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
  above, below = figure.subfigures(2, 1, height_ratios=[2.75 * rows, bars])
  grid = above.subplots(rows, columns, squeeze=False)
  for axes, run in zip(grid.flat, runs, strict=False):
    entropy = _array(run["entropy_LxH"])
    _draw_heatmap(axes, entropy, max_entropy, 6.5 if max(entropy.shape) <= 6 else None)
    axes.set_title(run["architecture"], fontsize=9.5, fontweight="bold", color=style.INK, loc="left", pad=17)
    axes.text(0, 1.025, f"{run['name']} · {_perplexity(run)}", transform=axes.transAxes, va="bottom", fontsize=8,
              color=style.MUTED)  # fmt: skip
  for axes in grid.flat[len(runs) :]:
    axes.set_axis_off()
  scale = ScalarMappable(colors.Normalize(0, max_entropy), style.CMAP)
  _entropy_ticks(above.colorbar(scale, ax=grid, fraction=0.035, pad=0.02, aspect=28), max_entropy)
  _draw_shares(below.subplots(), runs, max_entropy)
  return figure


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
  """A figure drawn: uint8 [height, width, 3]."""
  figure.set_dpi(dpi)
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


def write_run_figures(workdir) -> list[pathlib.Path]:
  """Writes `run_figures` into the run's folder as PNG files; returns their paths."""
  return folder.write_figures(pathlib.Path(workdir), run_figures(workdir))


def run_figures(workdir) -> dict[str, Figure]:
  """The figures of a run's folder: entropy_heatmap (at the last step recorded) and entropy_layers (over all steps).

  Raises:
    UserError: for a folder that holds no run, or a run that has recorded nothing yet.
  """
  workdir = pathlib.Path(workdir)
  config = folder.read_config(workdir)
  trained, evaluated = metrics.read(workdir, "train"), metrics.read(workdir, "eval")
  curve = trained or evaluated  # the training records are the denser ones
  if not curve:
    raise UserError(f"{workdir}: metrics.jsonl has no line yet: nothing to draw")
  last = max([*evaluated, *trained], key=lambda record: record["step"])  # at equal steps the evaluation
  name, max_entropy = config_lib.architecture_name(config), config_lib.bins_max(config)
  shares = f"Max {max_entropy:.2f} nats"
  if "head_shares" in last:
    shares = "heads by quarter of Max: " + tables.percent(last["head_shares"])
  quality = f"{_perplexity(last)} · " if "perplexity" in last or not _is_finite(last["loss"]) else ""
  source = "training batches" if trained else "evaluations"
  return {
    "entropy_heatmap": heatmap(last["entropy_LxH"], max_entropy, f"{name}\n{quality}step {last['step']:,} · {shares}"),
    "entropy_layers": layer_curves(
      [record["step"] for record in curve],
      [record["entropy_LxH"] for record in curve],
      config_lib.causal_ceiling(config.model.context_length),
      f"{name}\n{quality}step {last['step']:,} · entropy on {source}",
    ),
  }


def _array(entropy) -> np.ndarray:
  """Float64, with JSON's null as NaN."""
  return np.asarray(entropy, dtype=np.float64)


def _draw_heatmap(axes: Axes, entropy: np.ndarray, max_entropy: float, fontsize: float | None) -> None:
  """Draws the cells, with their values where a font size is given."""
  layers, heads = entropy.shape
  norm = colors.Normalize(0, max_entropy)
  axes.imshow(np.ma.masked_invalid(entropy), cmap=style.CMAP, norm=norm, aspect="auto", interpolation="nearest")
  for layer, head in np.ndindex(entropy.shape):
    value = entropy[layer, head]
    if not np.isfinite(value):
      axes.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, **style.NONFINITE))
    if fontsize:
      text = f"{value:.2f}" if np.isfinite(value) else "nan"
      ink, box = style.ink_on(style.CMAP(norm(value))), None
      if not np.isfinite(value):
        ink, box = style.INK, {"facecolor": style.NONFINITE["facecolor"], "linewidth": 0, "pad": 1.5}
      axes.text(head, layer, text, ha="center", va="center", fontsize=fontsize, color=ink, bbox=box)
  axes.set_xticks(_every(heads, 16))
  axes.set_yticks(_every(layers, 18))
  axes.set_xticks(np.arange(1, heads) - 0.5, minor=True)
  axes.set_yticks(np.arange(1, layers) - 0.5, minor=True)
  axes.grid(which="minor", color="white", linewidth=0.8 if max(layers, heads) <= 24 else 0.3)
  axes.tick_params(which="both", length=0, labelsize=8, labelcolor=style.INK)
  axes.spines[:].set_visible(False)
  axes.set_xlabel("head", fontsize=9, color=style.INK)
  axes.set_ylabel("layer", fontsize=9, color=style.INK)


def _draw_shares(axes: Axes, runs: Sequence[Mapping], max_entropy: float) -> None:
  """One stacked bar a run, the first on top."""
  gap = False
  for y, run in enumerate(runs):
    left = 0.0
    for share, color in zip(run["head_shares"], style.BIN_COLORS, strict=True):
      axes.barh(y, 100 * share, left=left, height=0.68, color=color, edgecolor="white", linewidth=0.8)
      if share >= 0.05:
        axes.text(
          left + 50 * share, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=style.ink_on(color)
        )
      left += 100 * share
    if left < 99.95:
      gap = True
      axes.barh(y, 100 - left, left=left, height=0.68, **style.NONFINITE)
  axes.set_yticks(range(len(runs)), [run["name"] for run in runs])
  axes.set_ylim(len(runs) - 0.5, -0.5)
  axes.set_xlim(0, 100)
  axes.set_xlabel(f"share of heads by entropy (%), Max = {max_entropy:.2f} nats for all", fontsize=9, color=style.INK)
  axes.tick_params(length=0, labelsize=8.5, labelcolor=style.INK)
  axes.spines[:].set_visible(False)
  entries = [Patch(color=color, label=label) for color, label in zip(style.BIN_COLORS, BINS, strict=True)]
  entries += [Patch(**style.NONFINITE, label="not finite")] if gap else []
  axes.legend(handles=entries, ncols=len(entries), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False,
              fontsize=8, handlelength=1.1, handleheight=1.1, columnspacing=1.6, borderaxespad=0.2)  # fmt: skip


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color) -> None:
  finite = np.isfinite(values)
  axes.plot(steps, values, color=color, linewidth=1.7, marker="o" if len(steps) <= 12 else None, markersize=3.5)
  ends = np.flatnonzero(finite[:-1] & ~finite[1:])
  axes.plot(steps[ends], values[ends], linestyle="none", marker="x", color=color, markersize=7, markeredgewidth=1.8)


def _entropy_bar(figure: Figure, axes: Axes, max_entropy: float) -> None:
  mappable = ScalarMappable(colors.Normalize(0, max_entropy), style.CMAP)
  _entropy_ticks(figure.colorbar(mappable, cax=axes), max_entropy)


def _entropy_ticks(bar, max_entropy: float) -> None:
  """Ticks at the edges of the head bins."""
  bar.set_ticks([max_entropy * k / 4 for k in range(5)], labels=[f"{max_entropy * k / 4:.2f}" for k in range(5)])
  bar.set_label("entropy (nats)", color=style.INK, fontsize=9)
  _plain_bar(bar)


def _plain_bar(bar) -> None:
  bar.outline.set_visible(False)
  bar.ax.tick_params(length=0, labelsize=8, labelcolor=style.INK)


def _title(figure: Figure, title: str, left: float, height: float) -> None:
  """Sets a title's first line in bold and the others below it, `left` in parts of the width, height in inches."""
  first, _, rest = title.partition("\n")
  figure.text(left, 1 - 0.2 / height, first, ha="left", va="top", fontsize=12.5, fontweight="bold", color=style.INK)
  figure.text(left, 1 - 0.48 / height, rest, ha="left", va="top", fontsize=9, color=style.MUTED)


def _perplexity(run: Mapping) -> str:
  value = run.get("perplexity")
  return f"PPL {value:.2f}" if _is_finite(value) else "PPL not finite"


def _is_finite(value: float | None) -> bool:
  """Whether a figure of a run is a number; JSON holds None for one that is not."""
  return value is not None and math.isfinite(value)


def _every(count: int, most: int) -> np.ndarray:
  """At most `most` evenly spaced indices below count, from 0."""
  return np.arange(0, count, math.ceil(count / most))
