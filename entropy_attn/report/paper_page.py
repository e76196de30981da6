"""What the figures for a paper have in common: the page's width, grids of panels, their titles and legends."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_attn.report import draw, style
from entropy_attn.report.paper_runs import PaperRun

SMALL, TEXT = 6.5, 8  # points


def page(height: float) -> Figure:
  """A figure as wide as a page, `height` inches."""
  figure = Figure(figsize=(style.PRINT_WIDTH, height), dpi=style.PRINT_DPI, facecolor="white")
  figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05, wspace=0.02, hspace=0.02)
  return figure


def panels(count: int) -> tuple[int, int]:
  """Rows and columns of a grid for so many panels."""
  columns = count if count <= 3 else 2 if count == 4 else 3 if count <= 9 else 4
  return math.ceil(count / columns), columns


def panel_title(axes: Axes, width: float, first: str, second: str) -> None:
  """A panel's two lines, the first in bold, neither wider than the panel (inches)."""
  for text, size, bold, up, color in ((first, TEXT, True, 11, style.INK), (second, SMALL, False, 3, style.MUTED)):
    text, size = draw.fitted(text, width, size, least=5, bold=bold)
    weight = "bold" if bold else "normal"
    axes.annotate(text, (0, 1), xytext=(0, up), xycoords="axes fraction", textcoords="offset points", fontsize=size,
                  fontweight=weight, color=color, va="bottom", annotation_clip=False)  # fmt: skip


def run_lines(run: PaperRun) -> tuple[str, str]:
  """A panel's two lines for a run: its architecture, and its name and what it reached."""
  return run.row["architecture"], f"{run.row['name']} · {run.caption}"


def run_legend(figure, axes: Axes) -> None:
  """The lines of an axes under a figure, at most three columns."""
  handles, labels = axes.get_legend_handles_labels()
  columns = min(3, len(labels))
  fits = [draw.fitted(label, style.PRINT_WIDTH / columns - 0.6, 7)[0] for label in labels]
  figure.legend(handles, fits, ncols=columns, loc="outside lower center", fontsize=7, frameon=False, handlelength=3)
