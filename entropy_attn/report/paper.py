"""The paper's figures of a study, ours beside the published numbers where they are known, and the Pareto plot.

    figure2a  head shares as bars, and the top quarter       figure6  learned threshold weights, by head and by layer
    figure2b  loss over steps                                figure7  head shares against gamma
    figure3   entropy of each head at the end                figure8  layers' mean entropy over steps, by gamma
    figure5   layers' mean entropy over steps                pareto   perplexity against private bytes and seconds

They are as wide as a page of two columns, in letters fit for print. Runs that diverged are hatched or crossed; seeds
are shown as their range; one Max, the study's, holds for all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses

from matplotlib.figure import Figure

from entropy_attn.errors import check_choice
from entropy_attn.report import paper_curves, paper_heads, paper_pareto, paper_runs
from entropy_attn.report.paper_runs import PaperRun


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A figure: which runs it can show, how it draws them with the study's Max, and what to say where there is none."""

  shows: Callable[[PaperRun], bool]
  draw: Callable[[Sequence[PaperRun], float], Figure]
  nothing: str


_with_shares = lambda run: run.row["head_shares"] is not None or run.diverged
_with_heads = lambda run: run.row["entropy_LxH"] is not None or run.diverged
_with_course = lambda run: bool(run.courses)
_with_gamma = lambda run: run.row["gamma"] is not None
_with_price = lambda run: run.row["private"] is not None

_KINDS = {
  "figure2a": _Kind(_with_shares, paper_heads.figure2a, "no run has head shares yet"),
  "figure2b": _Kind(_with_course, lambda runs, _: paper_curves.figure2b(runs), "no run has recorded a loss yet"),
  "figure3": _Kind(_with_heads, paper_heads.figure3, "no run has entropies of its heads yet"),
  "figure5": _Kind(_with_course, lambda runs, _: paper_curves.figure5(runs), "no run has recorded entropies yet"),
  "figure6": _Kind(
    lambda run: run.row["thresholds_LxH"] is not None,
    lambda runs, _: paper_heads.figure6(runs),
    "no run has thresholds: none is regularised, or none has been evaluated yet",
  ),
  "figure7": _Kind(
    lambda run: _with_gamma(run) and _with_shares(run), paper_heads.figure7, "no run with a gamma has head shares yet"
  ),
  "figure8": _Kind(
    lambda run: _with_gamma(run) and _with_course(run),
    lambda runs, _: paper_curves.figure8(runs),
    "no run with a gamma has recorded entropies yet",
  ),
  "pareto": _Kind(
    lambda run: run.diverged or run.row["perplexity"] is not None,
    lambda runs, _: paper_pareto.pareto(runs),
    "no run has both a perplexity and a private price yet",
  ),
}
NAMES = tuple(_KINDS)


def paper_figures(names: Iterable[str], result: Mapping, workdir) -> dict[str, Figure]:
  """The figures named that the study has data for, by name; `missing` says why others are not among them.

  Args:
    names: of NAMES.
    result: what a study's table.json holds.
    workdir: the study's folder; the courses of runs are read there.

  Raises:
    UserError: for another name, or a run whose records are damaged.
  """
  found = {name: runs for name, runs in _shown(names, result, workdir).items() if runs}
  ceiling = max((run.ceiling for runs in found.values() for run in runs), default=None)
  max_entropy = result["max_entropy"] or ceiling  # nothing evaluated yet: what heads can reach
  return {name: _KINDS[name].draw(runs, max_entropy) for name, runs in found.items()}


def missing(names: Iterable[str], result: Mapping, workdir) -> dict[str, str]:
  """Why a figure named cannot be drawn yet, by name; the arguments and errors are those of `paper_figures`."""
  return {name: _KINDS[name].nothing for name, runs in _shown(names, result, workdir).items() if not runs}


def _shown(names: Iterable[str], result: Mapping, workdir) -> dict[str, list[PaperRun]]:
  """For each figure the runs that it shows."""
  names = list(names)
  for name in names:
    check_choice("figures", name, NAMES)
  runs = paper_runs.of_result(result, workdir)
  found = {name: [run for run in runs if _KINDS[name].shows(run)] for name in names}
  if not any(map(_with_price, found.get("pareto", []))):
    found |= {"pareto": []} if "pareto" in found else {}
  return found
