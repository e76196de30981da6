"""What the figures for a paper have in common: the page's width, grids of panels, their titles and legends."""

from collections.abc import Callable, Iterable, Sequence
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_attn.report import draw, style
from entropy_attn.report.paper_runs import PaperRun

SMALL, TEXT = 6.5, 8  # points


def first_of_each(items: Iterable, key: Callable) -> list:
  """Those whose key no earlier one has: what was published stands once, however many runs it is of."""
  found = {}
  for item in items:
    found.setdefault(key(item), item)
  return list(found.values())


def page(height: float) -> Figure:
  """A figure as wide as a page, `height` inches."""
  figure = Figure(figsize=(style.PRINT_WIDTH, height), dpi=style.PRINT_DPI, facecolor="white")
  figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05, wspace=0.02, hspace=0.02)
  return figure


def panels(count: int) -> tuple[int, int]:
  """Rows and columns of a grid for so many panels."""
  columns = {1: 1, 2: 2, 4: 2, 7: 4, 8: 4}.get(count, 3 if count <= 9 else 4 if count <= 16 else 5)
  return math.ceil(count / columns), columns


def panel_titles(titled: Sequence[tuple[Axes, str, str]], columns: int) -> None:
  """Two lines above each panel, the first in bold; all first lines in one size, and all second: the longest fits."""
  width = (style.PRINT_WIDTH - 1.0) / columns - 0.12  # inches, from one panel's left edge to the next
  for line, largest, bold, up, color in ((1, TEXT, True, 11, style.INK), (2, SMALL, False, 3, style.MUTED)):
    size = min(draw.fitted(title[line], width, largest, bold=bold)[1] for title in titled)
    weight = "bold" if bold else "normal"
    for title in titled:
      text, _ = draw.fitted(title[line], width, size, bold=bold)
      title[0].annotate(text, (0, 1), xytext=(0, up), xycoords="axes fraction", textcoords="offset points",
                        fontsize=size, fontweight=weight, color=color, va="bottom", annotation_clip=False,
                        in_layout=False)  # fmt: skip
  for axes, *_ in titled:  # room above: their widths must not make the panels narrower
    axes.set_title(" \n ", fontsize=TEXT, pad=2)


def run_lines(run: PaperRun) -> tuple[str, str]:
  """A panel's two lines for a run: its architecture, or its name where several have that, and what it reached."""
  if run.unique:
    return run.row["architecture"], run.caption
  return run.row["name"], f"{run.caption} · {run.row['architecture']}"


def run_legend(figure, axes: Axes) -> None:
  """The lines of an axes under a figure, at most three columns."""
  handles, labels = axes.get_legend_handles_labels()
  columns = min(3, len(labels))
  fits = [draw.fitted(label, style.PRINT_WIDTH / columns - 0.6, 7, least=7)[0] for label in labels]
  figure.legend(handles, fits, ncols=columns, loc="outside lower center", fontsize=7, frameon=False, handlelength=3)
