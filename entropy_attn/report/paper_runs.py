"""A study's runs as its figures for a paper need them: names and looks, courses, and what was published of them."""

from collections.abc import Mapping
import dataclasses
import functools
import math
import pathlib

import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import entropy, published
from entropy_attn.report import draw, style
from entropy_attn.run import metrics


@dataclasses.dataclass(frozen=True)
class Course:
  """What one seed of a run recorded, over steps. S of the two kinds of records differs.

  Attributes:
    evaluated, trained: steps [S] and losses [S], nats a token, NaN where not finite; training's is cross-entropy.
    steps: [S] of the entropies, those of training where there are any.
    entropy_SxLxH: nats; NaN where not finite.
    last_LxH: nats, of the last evaluation, or of the last training step without one.
    broke: whether the last training step recorded was not finite: its loss, gradient or an entropy.
  """

  evaluated: tuple[np.ndarray, np.ndarray]
  trained: tuple[np.ndarray, np.ndarray]
  steps: np.ndarray
  entropy_SxLxH: np.ndarray
  last_LxH: np.ndarray
  broke: bool


@dataclasses.dataclass(frozen=True)
class PaperRun:
  """A row of a study's table.json, and what it takes to draw it.

  Attributes:
    row: as in table.json.
    unique: whether no other run of the study has its architecture.
    folders: of its seeds.
    number: among the study's runs; one has the same look in all figures.
  """

  row: Mapping
  unique: bool
  folders: tuple[pathlib.Path, ...]
  number: int

  @property
  def label(self) -> str:
    """The architecture in the paper's notation, after the run's name where several have it."""
    architecture = self.row["architecture"]
    return architecture if self.unique else f"{self.row['name']}, {architecture}"

  @property
  def look(self) -> dict:
    """Colour, dashes and mark of its lines."""
    colors, dashes, marks = style.RUN_COLORS, style.RUN_DASHES, style.RUN_MARKS
    i = self.number
    return {
      "color": colors[i % len(colors)], "linestyle": dashes[i // len(colors) % len(dashes)],
      "marker": marks[i % len(marks)],
    }  # fmt: skip

  @property
  def diverged(self) -> bool:
    """Whether its training broke down, with any of its seeds."""
    return self.row["status"] == "diverged"

  @property
  def caption(self) -> str:
    """What it reached, in few words."""
    perplexity = self.row["perplexity"]
    if self.diverged and perplexity is None:
      return "diverged"
    if not draw.is_finite(perplexity):
      return self.row["status"]
    spread = self.row.get("perplexity_sd")
    text = f"PPL {perplexity:.2f}" + (f" ± {spread:.2f}" if draw.is_finite(spread) and spread > 0 else "")
    return f"{text}, diverged" if self.diverged else text  # that of evaluations before, or of other seeds

  @functools.cached_property
  def courses(self) -> list[Course]:
    """Of the seeds that have recorded anything."""
    return [course for course in map(_read_course, self.folders) if course]

  @property
  def ceiling(self) -> float:
    """The largest mean entropy that a causal head can have, nats."""
    return config_lib.causal_ceiling(self.row["model"]["context_length"])

  def shares_of_seeds(self, max_entropy: float) -> np.ndarray:
    """Head shares of each seed that has recorded anything, [seeds, 4] fractions."""
    found = [entropy.head_shares(np.float32(course.last_LxH), max_entropy) for course in self.courses]
    return np.reshape(found, (len(found), 4))

  @property
  def published_loss(self) -> float | None:
    """Nats a token at the end of training: NaN where the paper printed that; None where it printed nothing."""
    if not self.row["published"]:
      return None
    perplexity = self.row["published"].get("perplexity")
    if draw.is_finite(perplexity):
      return math.log(perplexity)
    if self.row["published"].get("diverged"):
      return math.nan
    printed = published.TABLE_2.get(self.row["architecture_row"])
    return printed if printed is not None and math.isnan(printed) else None

  @property
  def published_shares(self) -> tuple[float, ...] | None:
    """Per cent of the heads in each quarter of Max, as printed in Figure 2a; None where it says nothing in numbers."""
    return published.FIGURE_2A_SM if self.row["architecture_row"] == "sm" else None

  @property
  def published_top(self) -> float | None:
    """Per cent of the heads in the highest quarter of Max, as printed in Figure 2a."""
    return published.FIGURE_2A_TOP.get(self.row["architecture_row"])


def of_result(result: Mapping, workdir) -> list[PaperRun]:
  """The runs of table.json, in its order."""
  rows = result["runs"]
  names = [row["architecture"] for row in rows]
  return [
    PaperRun(
      row,
      names.count(row["architecture"]) == 1,
      tuple(pathlib.Path(workdir, folder) for folder in row["folders"]),
      number,
    )
    for number, row in enumerate(rows)
  ]


def _read_course(folder: pathlib.Path) -> Course | None:
  """The course of a run's folder; None where nothing is recorded yet.

  Raises:
    UserError: for records that are damaged.
  """
  if metrics.last_step(folder) is None:
    return None
  trained, evaluated = metrics.read(folder, "train"), metrics.read(folder, "eval")
  curve = [record for record in trained or evaluated if "entropy_LxH" in record]
  with_heads = [record for record in evaluated or trained if "entropy_LxH" in record]
  if not with_heads:
    return None
  return Course(
    _losses(evaluated, "loss"),
    _losses(trained, "cross_entropy"),
    np.array([record["step"] for record in curve]),
    draw.array([record["entropy_LxH"] for record in curve]),
    draw.array(with_heads[-1]["entropy_LxH"]),
    bool(trained) and _broke(trained[-1]),
  )


def _broke(record: Mapping) -> bool:
  numbers = [record.get("loss", 0.0), record.get("grad_norm", 0.0), *np.ravel(record.get("entropy_LxH", []))]
  return not np.isfinite(draw.array(numbers)).all()


def _losses(records: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
  steps = np.array([record["step"] for record in records])
  return steps, draw.array([record.get(name, record.get("loss")) for record in records])
