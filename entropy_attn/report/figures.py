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
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.report import draw, style, tables
from entropy_attn.run import folder, metrics


def heatmap(entropy_LxH, max_entropy: float, title: str) -> Figure:
  """Entropy of each head, layers downwards and heads to the right (Figure 3).

  Args:
    entropy_LxH: nats; a non-finite head is drawn hatched and reads "nan".
    max_entropy: the upper end of the colour scale, nats.
    title: its first line is set in bold, the rest smaller below.
  """
  entropy = draw.array(entropy_LxH)
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
  draw.heatmap(axes, entropy, (0, max_entropy), 7.5 if cell >= 0.36 else None)
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
  steps, entropy_SxL = np.asarray(steps), draw.array(entropy_SxLxH).mean(axis=2)
  layers = entropy_SxL.shape[1]
  figure = Figure(figsize=(7.6, 4.5), dpi=style.DPI, facecolor="white")
  axes = figure.add_axes((0.085, 0.125, 0.775, 0.69))
  shades = colors.ListedColormap([style.CMAP(0.93 * l / max(layers - 1, 1)) for l in range(layers)])
  axes.axhline(ceiling, color=style.MUTED, linestyle=(0, (5, 3)), linewidth=1)
  axes.text(1, ceiling + 0.015 * ceiling, f"causal ceiling {ceiling:.2f} ", transform=axes.get_yaxis_transform(),
            ha="right", va="bottom", fontsize=8, color=style.MUTED)  # fmt: skip
  for layer in range(layers):
    draw.curve(axes, steps, entropy_SxL[:, layer], shades(layer))
  axes.set_ylim(0, 1.09 * ceiling)
  axes.set_xlim(steps.min(), max(steps.max(), steps.min() + 1))
  axes.set_xlabel("training step", color=style.INK)
  axes.set_ylabel("mean entropy of a layer's heads (nats)", color=style.INK)
  draw.tidy(axes, "y", 8.5)
  bar_axes = figure.add_axes((0.89, 0.125, 0.02, 0.69))
  norm = colors.BoundaryNorm(np.arange(layers + 1) - 0.5, layers)
  bar = figure.colorbar(ScalarMappable(norm, shades), cax=bar_axes, ticks=draw.every(layers, 12))
  bar.minorticks_off()
  bar_axes.invert_yaxis()  # the first layer on top, as in the heatmaps
  bar.set_label("layer", color=style.INK, fontsize=9)
  draw.plain_bar(bar)
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
    entropy = draw.array(run["entropy_LxH"])
    draw.heatmap(axes, entropy, (0, max_entropy), 6.5 if max(entropy.shape) <= 6 else None)
    axes.set_title(run["architecture"], fontsize=9.5, fontweight="bold", color=style.INK, loc="left", pad=17)
    what = f"{_name(run)} · {_perplexity(run)}"
    axes.text(0, 1.025, what, transform=axes.transAxes, va="bottom", fontsize=8, color=style.MUTED)
  for axes in grid.flat[len(runs) :]:
    axes.set_axis_off()
  scale = ScalarMappable(colors.Normalize(0, max_entropy), style.CMAP)
  draw.entropy_ticks(above.colorbar(scale, ax=grid, fraction=0.035, pad=0.02, aspect=28), max_entropy)
  _shares(below.subplots(), runs, max_entropy)
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
  quality = f"{_perplexity(last)} · " if "perplexity" in last or not draw.is_finite(last["loss"]) else ""
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


def _name(run: Mapping) -> str:
  """Short enough to leave room for what it names."""
  return draw.fitted(run["name"], 2.25, 8, least=8)[0]


def _shares(axes: Axes, runs: Sequence[Mapping], max_entropy: float) -> None:
  """One stacked bar a run, the first on top."""
  gaps = [draw.shares(axes, y, run["head_shares"], 0.68) for y, run in enumerate(runs)]
  axes.set_yticks(range(len(runs)), [_name(run) for run in runs])
  axes.set_ylim(len(runs) - 0.5, -0.5)
  axes.set_xlim(0, 100)
  axes.set_xlabel(f"share of heads by entropy (%), Max = {max_entropy:.2f} nats for all", fontsize=9, color=style.INK)
  axes.tick_params(length=0, labelsize=8.5, labelcolor=style.INK)
  axes.spines[:].set_visible(False)
  entries = draw.shares_legend(any(gaps))
  axes.legend(handles=entries, ncols=len(entries), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False,
              fontsize=8, handlelength=1.1, handleheight=1.1, columnspacing=1.6, borderaxespad=0.2)  # fmt: skip


def _entropy_bar(figure: Figure, axes: Axes, max_entropy: float) -> None:
  mappable = ScalarMappable(colors.Normalize(0, max_entropy), style.CMAP)
  draw.entropy_ticks(figure.colorbar(mappable, cax=axes), max_entropy)


def _title(figure: Figure, title: str, left: float, height: float) -> None:
  """Sets a title's first line in bold and the others below it, `left` in parts of the width, height in inches."""
  first, _, rest = title.partition("\n")
  figure.text(left, 1 - 0.2 / height, first, ha="left", va="top", fontsize=12.5, fontweight="bold", color=style.INK)
  figure.text(left, 1 - 0.48 / height, rest, ha="left", va="top", fontsize=9, color=style.MUTED)


def _perplexity(run: Mapping) -> str:
  value = run.get("perplexity")
  return f"PPL {value:.2f}" if draw.is_finite(value) else "PPL not finite"
