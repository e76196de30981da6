"""The paper's figures of studies made up in the form of table.json, with records of runs as they stand on disk."""

import copy
import itertools
import json
import math

from made_study import study
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import QuadMesh
from matplotlib.text import Text
import numpy as np
import pytest

from entropy_attn import published
from entropy_attn.errors import UserError
from entropy_attn.report import draw, paper, paper_pareto, style
from entropy_attn.run import folder

pytestmark = pytest.mark.slow  # each draws several figures as for print
GAMMAS = [0.0, 0.1, 0.15, 0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """By what is asked of `study`: its folder, result and figures, each made once."""
  found = {}

  def get(rows=8, gammas=None, **how):
    key = (rows, bool(gammas), *how.items())
    if key not in found:
      workdir = tmp_path_factory.mktemp("study")
      result = study(workdir, rows, gammas=gammas, **how)
      found[key] = workdir, result, paper.paper_figures(paper.NAMES, result, workdir)
    return found[key]

  return get


def numbers(figure):
  """Every number that the figure's lines, bars and cells are drawn from."""
  found = []
  for axes in figure.axes:
    found += [np.ravel(line.get_xydata()) for line in axes.lines]
    found += [(patch.get_width(), patch.get_height()) for patch in axes.patches if hasattr(patch, "get_width")]
    found += [np.ma.filled(cells.get_array(), np.nan).ravel() for cells in heatmaps(axes)]
  return np.concatenate([np.ravel(np.asarray(part, float)) for part in found])


def heatmaps(axes):
  """A colour bar is cells too, but has none across."""
  cells = [item for item in axes.collections if isinstance(item, QuadMesh) and item.get_array() is not None]
  return [item for item in cells if axes.get_label() != "<colorbar>"]


def shows(figure, wanted):
  drawn = numbers(figure)
  return [float(value) for value in np.ravel(wanted) if not np.isclose(drawn, value, rtol=1e-9).any()] == []


def texts(figure):
  """(text, box in dots) of all that is written on a figure, as its renderer is told."""
  canvas, found = FigureCanvasAgg(figure), {}

  class Recording(RendererAgg):
    def draw_text(self, gc, x, y, text, prop, angle, ismath=False, mtext=None):
      if text.strip():
        found[id(mtext)] = mtext

  renderer = Recording(*figure.bbox.size.astype(int), figure.dpi)
  canvas.draw()  # the layout
  found.clear()
  figure.draw(renderer)
  return [(text.get_text(), text.get_window_extent(renderer)) for text in found.values()]


def collisions(figure):
  """What lies on other text by a hundredth of an inch, or beyond the figure."""
  found, wrong = texts(figure), []
  for (text, box), (other_text, other) in itertools.combinations(found, 2):
    shared = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
    if min(shared) >= 0.01 * figure.dpi:
      wrong.append(f"{text!r} on {other_text!r}")
  width, height = figure.bbox.size
  outside = lambda box: box.x0 < -2 or box.y0 < -2 or box.x1 > width + 2 or box.y1 > height + 2
  return wrong + [f"{text!r} clipped" for text, box in found if outside(box)]


def test_every_figure_of_the_paper_is_drawn(made):
  workdir, result, figures = made()
  assert tuple(figures) == paper.NAMES
  assert paper.missing(paper.NAMES, result, workdir) == {}
  assert {figure.get_figwidth() for figure in figures.values()} == {style.PRINT_WIDTH}


def test_another_name_is_answered_with_the_choices(made):
  workdir, result, _ = made()
  with pytest.raises(UserError, match="figures='figure4' is not one of figure2a, .*did you mean"):
    paper.paper_figures(["figure3", "figure4"], result, workdir)
  with pytest.raises(UserError, match="pareto"):
    paper.missing(["frontier"], result, workdir)


def test_published_numbers_stand_beside_ours(made):
  _, result, figures = made()
  rows = result["runs"]
  assert shows(figures["figure2a"], [*published.FIGURE_2A_SM, *published.FIGURE_2A_TOP.values()])
  losses = [math.log(value) for value in published.TABLE_2.values() if not math.isnan(value)]
  assert len(losses) == 7 and shows(figures["figure2b"], losses)
  assert shows(figures["figure3"], published.FIGURE_3F)
  assert shows(figures["figure6"], published.FIGURE_6A)
  assert shows(figures["figure6"], np.mean(published.FIGURE_6A, axis=1))
  assert shows(figures["figure6"], np.var(published.FIGURE_6A, axis=1))
  assert shows(figures["figure7"], [*published.FIGURE_7, *published.FIGURE_7.values()])
  table_3 = [row for row in published.ROWS if row.table == 3]
  assert len(table_3) == 4 and {row.architecture for row in table_3} <= {row["architecture_row"] for row in rows}
  for row in table_3:
    assert shows(figures["pareto"], [row.gigabytes, 60 * row.minutes, *row.perplexities.values()])


def test_nothing_is_published_where_the_study_says_so(made):
  workdir, result, _ = made()
  result = copy.deepcopy(result)
  for row in result["runs"]:
    row["published"] = None
  figures = paper.paper_figures(["figure2b", "pareto"], result, workdir)
  written = [text for figure in figures.values() for text, _ in texts(figure)]
  assert not [text for text in written if "published" in text or "PPL" in text]


def test_our_numbers_are_drawn_as_they_are(made):
  _, result, figures = made()
  for row in result["runs"]:
    assert shows(figures["figure2a"], [100 * share for share in row["head_shares"] if share > 0])
    assert shows(figures["figure3"], [value for heads in row["entropy_LxH"] for value in heads if value is not None])
    if row["perplexity"]:
      price = row["private"]
      assert shows(figures["pareto"], [row["perplexity"], price["bytes"] / 1e9, price["online_bytes"] / 1e9])
      assert shows(figures["pareto"], [price["wan_seconds"], price["wan_online_seconds"]])
  ereg = next(row for row in result["runs"] if row["thresholds_LxH"])
  assert shows(figures["figure6"], ereg["thresholds_LxH"])
  assert shows(figures["figure6"], np.var(ereg["thresholds_LxH"], axis=1))


def test_one_max_holds_for_all_heatmaps(made):
  _, result, figures = made()
  scales = {cells.norm.vmax for axes in figures["figure3"].axes for cells in heatmaps(axes)}
  assert scales == {result["max_entropy"]}
  ends = {(cells.norm.vmin, cells.norm.vmax) for axes in figures["figure6"].axes for cells in heatmaps(axes)}
  assert len(ends) == 1


def test_a_scale_reaches_the_published_entropies_where_ours_are_smaller(made):
  workdir, result, _ = made()
  small = copy.deepcopy(result) | {"max_entropy": 1.92}  # 16 tokens
  figure = paper.paper_figures(["figure3"], small, workdir)["figure3"]
  assert {cells.norm.vmax for axes in figure.axes for cells in heatmaps(axes)} == {published.MAX_ENTROPY}


_MANY = [pytest.param(how, marks=pytest.mark.slow) for how in ({"rows": 20}, {"gammas": GAMMAS})]


@pytest.mark.parametrize("how", [{"rows": 1, "seeds": 1}, {"rows": 4}, {"rows": 8}, *_MANY])
def test_no_text_lies_on_another_or_is_clipped(made, how):
  *_, figures = made(**how)
  assert "pareto" in figures
  assert {name: collisions(figure) for name, figure in figures.items() if collisions(figure)} == {}
  assert all(len(texts(figure)) > 5 for figure in figures.values())


def test_long_names_are_cut_and_their_perplexities_are_not(made):
  workdir, result, _ = made()
  rows = copy.deepcopy(result["runs"])
  for i, row in enumerate(rows):
    row |= {"name": f"thresholds_learned_strengths_per_head_{i}", "architecture": "EReg(SM(t)+ScFuFFN)", "gamma": 0.2}
  figures = paper.paper_figures(["figure2a", "figure2b", "figure7", "pareto"], result | {"runs": rows}, workdir)
  for name, figure in figures.items():
    assert not collisions(figure), name
  written = [text for text, _ in texts(figures["pareto"])]
  reached = [row["perplexity"] for row in rows if row["perplexity"]]
  assert all(any(text.endswith(f"… · {perplexity:.2f}") for text in written) for perplexity in reached)


@pytest.mark.slow
def test_runs_of_several_depths_and_nothing_but_divergence(made):
  workdir, result, _ = made()
  deep_dir, deep, _ = made(rows=4, shape=(12, 12))
  rows = copy.deepcopy(result["runs"][:2]) + copy.deepcopy(deep["runs"][:3])
  for row, place in zip(rows, [workdir] * 2 + [deep_dir] * 3, strict=True):
    row["folders"] = [str(place / path) for path in row["folders"]]
  figures = paper.paper_figures(paper.NAMES, result | {"runs": rows}, workdir)
  assert tuple(figures) == paper.NAMES and not any(map(collisions, figures.values()))
  assert {"first", "last"} <= {text for text, _ in texts(figures["figure5"])}
  broken = [row | {"status": "diverged", "perplexity": None, "perplexity_sd": None} for row in rows]
  figures = paper.paper_figures(paper.NAMES, result | {"runs": broken}, workdir)
  assert tuple(figures) == paper.NAMES and not any(map(collisions, figures.values()))


@pytest.mark.parametrize("how", [{"rows": 4}, {"rows": 20}, {"gammas": GAMMAS}])
def test_letters_are_large_enough_to_print(made, how):
  for name, figure in made(**how)[2].items():
    sizes = [item.get_fontsize() for item in figure.findobj(Text) if item.get_text()]
    assert min(sizes) >= 5, name


def test_the_pareto_plot_names_each_architecture(made):
  _, result, figures = made(rows=20)
  written = [text for text, _ in texts(figures["pareto"])]
  for row in result["runs"]:
    assert any(text.startswith(f"{row['architecture']} · ") for text in written)
  _, result, figures = made(gammas=GAMMAS)
  written = [text for text, _ in texts(figures["pareto"])]
  for row in result["runs"]:
    assert any(text.startswith(f"{row['name']}, {row['architecture']} · ") for text in written)


def test_twenty_runs_look_different_without_colour_too(made):
  _, result, _ = made(rows=20)
  runs = paper.paper_runs.of_result(result, "")
  assert len({(str(run.look["linestyle"]), run.look["marker"]) for run in runs}) == 20
  luminance = [np.dot(color[:3], (0.2126, 0.7152, 0.0722)) for color in style.BIN_COLORS]
  assert (np.diff(luminance) > 0.1).all()  # of the stacked shares, in order


def test_divergence_is_shown(made):
  _, _, figures = made()
  hatched = [patch for patch in figures["figure2a"].axes[0].patches if patch.get_hatch()]
  assert len(hatched) == 1 and hatched[0].get_width() > 0
  assert [patch for axes in figures["figure3"].axes for patch in axes.patches if patch.get_hatch()]
  crosses = [line for line in figures["figure2b"].axes[0].lines if line.get_marker() == "x"]
  assert [line.get_xdata()[-1] for line in crosses] == [290] * 3  # the last finite step of each seed
  assert "NaN" in " ".join(text for text, _ in texts(figures["figure2b"]))
  assert "diverged" in [text for text, _ in texts(figures["figure5"])]
  assert "SM · diverged" in [text for text, _ in texts(figures["pareto"])]


def test_seeds_are_shown_as_their_spread(made):
  _, result, figures = made()
  row = result["runs"][0]
  bars = [item for axes in figures["pareto"].axes for item in axes.collections if hasattr(item, "get_segments")]
  ends = [np.ptp(segment[:, 1]) for item in bars for segment in item.get_segments()]
  assert np.isclose(ends, 2 * row["perplexity_sd"]).sum() == 4  # in all and with the prompt, in both panels
  assert len(figures["figure2b"].axes[0].collections) == len(result["runs"])  # bands


def _blank(row, status, **more):
  nothing = ("perplexity", "perplexity_sd", "head_shares", "entropy_LxH", "thresholds_LxH", "private", "published")
  return row | dict.fromkeys(nothing) | {"status": status, "perplexities": [None] * 3, "folders": []} | more


def test_runs_without_results_are_left_out_and_those_that_diverged_early_are_not(made, tmp_path):
  workdir, result, _ = made()
  rows = copy.deepcopy(result["runs"])
  rows[3] = _blank(rows[3], "not trained", folders=["nowhere/seed0"])
  rows[4] = _blank(rows[4], "diverged", reason="step 3: loss is nan")
  rows[5] |= {"private": None, "private_reason": "no price for it"}
  rows[6]["entropy_LxH"][0][0] = None
  rows[2]["thresholds_LxH"][1] = [None] * 4
  figures = paper.paper_figures(paper.NAMES, result | {"runs": rows}, workdir)
  assert tuple(figures) == paper.NAMES
  folder.write_figures(tmp_path, figures)
  labels = [label.get_text() for label in figures["figure2a"].axes[0].get_yticklabels()]
  assert rows[3]["architecture"] not in labels and f"{rows[4]['architecture']}, diverged" in labels
  written = [text for text, _ in texts(figures["pareto"])]
  assert f"{rows[5]['architecture']} · {rows[5]['perplexity']:.2f}, no price" in written
  assert f"{rows[4]['architecture']} · diverged, no price" in written


def test_a_run_that_diverged_after_an_evaluation_is_marked_and_on_no_front(made):
  workdir, result, _ = made()
  rows = copy.deepcopy(result["runs"][:3])
  rows[1] |= {"perplexity": 20.0}  # the best of all
  figures = paper.paper_figures(["figure3", "pareto"], result | {"runs": rows}, workdir)
  assert "SM · 20.00, diverged" in [text for text, _ in texts(figures["pareto"])]
  assert "PPL 20.00, diverged" in [text for text, _ in texts(figures["figure3"])]
  fronts = [line for line in figures["pareto"].axes[0].lines if line.get_drawstyle() == "steps-post"]
  assert len(fronts) == 2 and all(min(line.get_ydata()) == rows[0]["perplexity"] for line in fronts)


def test_a_run_that_broke_down_before_its_first_evaluation_is_followed_there(made, tmp_path):
  _, result, _ = made()
  row = _blank(result["runs"][1], "diverged", folders=["sm/seed0"])
  (tmp_path / "sm/seed0").mkdir(parents=True)
  heads = np.full((6, 4), 3.0).tolist()
  records = [
    {"kind": "train", "step": step, "loss": loss, "grad_norm": norm, "cross_entropy": loss, "entropy_LxH": heads}
    for step, loss, norm in ((10, 7.5, 1.0), (20, 6.5, 2.0), (23, 6.0, None))
  ]
  (tmp_path / "sm/seed0/metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  figures = paper.paper_figures(["figure2b", "figure5"], result | {"runs": [row]}, tmp_path)
  crosses = [line for line in figures["figure2b"].axes[0].lines if line.get_marker() == "x"]
  assert [tuple(*line.get_xydata()) for line in crosses] == [(23, 6.0)]  # its gradient was not finite, its loss was
  low, high = figures["figure2b"].axes[0].get_ylim()
  assert low < 6.0 < high
  assert "diverged" in [text for text, _ in texts(figures["figure5"])]


def test_what_cannot_be_drawn_is_said(made):
  workdir, result, _ = made()
  rows = [_blank(row, "not trained", gamma=None) for row in copy.deepcopy(result["runs"])]
  empty = result | {"runs": rows, "max_entropy": None}
  assert paper.paper_figures(paper.NAMES, empty, workdir) == {}
  reasons = paper.missing(paper.NAMES, empty, workdir)
  assert tuple(reasons) == paper.NAMES and all(reason.startswith("no run ") for reason in reasons.values())
  early = result | {"runs": [_blank(rows[0], "diverged")], "max_entropy": None}
  assert set(paper.paper_figures(paper.NAMES, early, workdir)) == {"figure2a", "figure3"}


def test_a_pdf_is_vectors_with_its_fonts_and_the_same_each_time(made, tmp_path):
  workdir, result, _ = made()
  draw_anew = lambda: paper.paper_figures(["figure2a", "figure6", "pareto"], result, workdir)
  first = folder.write_figures(tmp_path, draw_anew(), ("png", "pdf"))
  assert [path.name for path in first[:2]] == ["figure2a.png", "figure2a.pdf"]
  before = [path.read_bytes() for path in first]
  again = folder.write_figures(tmp_path, draw_anew(), ("png", "pdf"))
  assert [path.read_bytes() for path in again] == before
  for path, content in zip(first, before, strict=True):
    if path.suffix == ".pdf":
      assert content.startswith(b"%PDF") and b"/CreationDate" not in content
      assert b"/FontFile2" in content and b"/Type3" not in content
      assert b"/Subtype /Image" not in content, path


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_spread_in_order_and_within_bounds(seed):
  random = np.random.default_rng(seed)
  wanted = random.uniform(0, 10, random.integers(1, 12)).round(seed % 3)
  places = np.array(draw.spread(wanted, 0.9, 0, 10))
  order = np.argsort(wanted, kind="stable")
  assert (np.diff(places[order]) >= 0.9 - 1e-9).all()
  assert places.min() >= -1e-9 and places.max() <= 10 + 1e-9
  apart = np.linspace(1, 9, 8)
  np.testing.assert_allclose(draw.spread(apart, 0.9, 0, 10), apart)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_beats(seed):
  random = np.random.default_rng(seed)
  places = [tuple(place) for place in random.integers(0, 8, (15, 2)).tolist()]
  beats = lambda a, b: a != b and a[0] <= b[0] and a[1] <= b[1]
  best = {place for place in places if not any(beats(other, place) for other in places)}
  found = paper_pareto.front(places)
  assert set(found) == best and found == sorted(found)


def test_a_line_is_set_smaller_and_then_cut():
  assert draw.fitted("SM", 2, 8) == ("SM", 8)
  text, size = draw.fitted("EReg(SM(t)+ScFuFFN)", 1.0, 8)
  assert text == "EReg(SM(t)+ScFuFFN)" and 5 < size < 8
  text, size = draw.fitted("EReg(SM(t)+ScFuFFN)" * 4, 1.0, 8)
  assert text.endswith("…") and size == 5 and len(text) < 30
