"""Figures drawn from real run folders and the published data."""

import json
import math
import subprocess
import sys

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
import numpy as np
from PIL import Image
import pytest

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.report import draw, figures

GRID = np.linspace(0, 3.5, 24).reshape(6, 4)


def _texts(axes):
  return [text.get_text() for text in axes.texts]


def _line(kind, step, entropy=GRID, **more):
  return {"kind": kind, "step": step, "entropy_LxH": np.asarray(entropy).tolist(), **more}


def _run_folder(path, lines):
  path.mkdir(exist_ok=True)
  (path / "config.json").write_text(config_lib.codeparrot("quick").to_json())
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def test_heatmap_shows_each_value_in_its_cell():
  figure = figures.heatmap(GRID, 3.878, "SM+LN+G\nPPL 39.70 · step 600")
  assert isinstance(figure, Figure)
  axes = figure.axes[0]
  assert _texts(axes) == [f"{value:.2f}" for value in GRID.flat]
  cells = axes.collections[0]
  assert np.array_equal(cells.get_array(), GRID)
  assert (cells.norm.vmin, cells.norm.vmax) == (0, 3.878) and cells.cmap.name == "cividis"
  assert axes.get_ylim() == (5.5, -0.5)  # layer 0 on top
  assert [text.get_text() for text in figure.texts] == ["SM+LN+G", "PPL 39.70 · step 600"]


def test_heatmap_marks_non_finite_heads():
  entropy = [[1.0, None, 2.0], [math.nan, math.inf, 0.5]]  # None: as JSON holds NaN
  axes = figures.heatmap(entropy, 3.0, "SM").axes[0]
  assert _texts(axes) == ["1.00", "nan", "2.00", "nan", "nan", "0.50"]
  hatched = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
  assert hatched == [(0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]


def test_heatmap_leaves_values_out_where_they_do_not_fit():
  assert _texts(figures.heatmap(np.ones((48, 32)), 2.0, "SM").axes[0]) == []


@pytest.mark.parametrize("layers", [1, 2, 18, 40])
def test_layer_curves_draw_one_line_a_layer(layers, tmp_path):
  steps = np.arange(0, 100, 5)
  entropy = np.random.default_rng(0).uniform(0, 3, (20, layers, 4))
  figure = figures.layer_curves(steps, entropy, 3.878, "SM")
  lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 20]
  assert len(lines) == layers
  np.testing.assert_allclose(lines[-1].get_ydata(), entropy[:, -1].mean(axis=1))
  assert len({line.get_color() for line in lines}) == layers
  assert "causal ceiling 3.88 " in _texts(figure.axes[0])
  figure.savefig(tmp_path / "figure.png")


def test_layer_curves_stop_at_a_cross_where_a_layer_is_not_finite():
  entropy = np.ones((20, 2, 4))
  entropy[7:, 1, 2] = np.nan
  lines = figures.layer_curves(np.arange(20), entropy, 3.878, "SM").axes[0].lines
  crosses = [tuple(line.get_xdata()) for line in lines if line.get_marker() == "x"]
  assert crosses == [(), (6,)]


def test_comparison_draws_each_run_and_what_is_not_finite():
  runs = [
    {"name": "a", "architecture": "SM", "perplexity": None, "entropy_LxH": GRID, "head_shares": [0.25, 0.25, 0.25, 0]},
    {"name": "b", "architecture": "SM+G", "perplexity": 3.2, "entropy_LxH": GRID, "head_shares": [0, 0, 0.4, 0.6]},
  ]
  figure = figures.comparison(runs, 3.87)
  heatmaps = figure.axes[:2]
  assert [axes.get_title(loc="left") for axes in heatmaps] == ["SM", "SM+G"]
  assert [_texts(axes)[-1] for axes in heatmaps] == ["a · PPL not finite", "b · PPL 3.20"]
  bars = next(axes for axes in figure.axes if axes.get_legend())
  assert [label.get_text() for label in bars.get_yticklabels()] == ["a", "b"]
  assert [text.get_text() for text in bars.get_legend().get_texts()] == [*draw.BINS, "not finite"]
  widths = [patch.get_width() for patch in bars.patches]
  np.testing.assert_allclose(widths, [25, 25, 25, 0, 25, 0, 0, 40, 60])


@pytest.mark.filterwarnings("error")
def test_a_long_name_leaves_room_for_the_bars():
  run = {"name": "a" * 90, "architecture": "SM", "perplexity": 3.2, "entropy_LxH": GRID, "head_shares": [0, 0, 1, 0]}
  figure = figures.comparison([run, run], 3.87)
  figures.pixels(figure)
  bars = next(axes for axes in figure.axes if axes.get_legend())
  assert bars.get_position().width > 0.5
  assert [label.get_text() for label in bars.get_yticklabels()] == ["a" * 31 + "…"] * 2


def test_write_run_figures(tmp_path):
  trained = [_line("train", step, GRID * step / 30, loss=3.0) for step in (10, 20, 30)]
  evaluated = [_line("eval", 30, loss=1.1, perplexity=3.0, head_shares=[0.1, 0.2, 0.3, 0.4])]
  paths = figures.write_run_figures(_run_folder(tmp_path, trained + evaluated))
  assert paths == [tmp_path / "entropy_heatmap.png", tmp_path / "entropy_layers.png"]
  for path in paths:
    with Image.open(path) as image:
      assert image.width > 600 and len(image.convert("L").getcolors()) > 50


@pytest.mark.parametrize(
  "lines",
  [
    [_line("train", 10, np.full((6, 4), np.nan), loss=None)],  # diverged before the first evaluation
    [_line("eval", 0, loss=None, perplexity=None, head_shares=[0, 0, 0, 0])],  # one evaluation, no training
  ],
)
def test_write_run_figures_of_a_run_that_did_not_get_far(tmp_path, lines):
  assert all(path.stat().st_size > 0 for path in figures.write_run_figures(_run_folder(tmp_path, lines)))


@pytest.mark.parametrize(
  ("lines", "subtitle"),
  [
    ([_line("eval", 30, loss=1.1, perplexity=3.0), _line("train", 30, loss=1.0)], "PPL 3.00 · step 30 · "),
    ([_line("eval", 30, loss=1.1, perplexity=3.0), _line("train", 37, loss=None)], "PPL not finite · step 37 · "),
    ([_line("eval", 30, loss=1.1, perplexity=3.0), _line("train", 37, loss=1.0)], "step 37 · "),
  ],
)
def test_run_figures_show_the_last_step_even_where_it_diverged(tmp_path, lines, subtitle):
  for figure in figures.run_figures(_run_folder(tmp_path, lines)).values():
    assert figure.texts[0].get_text() == "SM+LN+G" and figure.texts[1].get_text().startswith(subtitle)


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match=r"no config\.json"):
    figures.write_run_figures(tmp_path)
  with pytest.raises(UserError, match="nothing to draw"):
    figures.write_run_figures(_run_folder(tmp_path, []))


def test_no_pyplot_state():
  code = "import sys, entropy_attn.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
