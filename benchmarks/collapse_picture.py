"""Draws the README's picture, docs/results/collapse_hot.png, from three runs of a study and the paper's Figure 3f.

    python -m entropy_attn.study --study=configs/studies/collapse.py --workdir=runs/collapse
    python -m benchmarks.collapse_picture --workdir=runs/collapse --to=docs/results/collapse_hot.png

The first command trains for nine minutes on two cores.
"""

import json

from absl import flags
import numpy as np

from entropy_attn import cli, published
from entropy_attn.errors import UserError

FLAGS = flags.FLAGS
_TITLES = {
  "sm_hot": "Norm and activation gone",
  "ln_hot": "LayerNorm kept",
  "ereg_hot": "Entropy guidance instead",
}


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_path("workdir", "runs/collapse", "Folder of the study.")
  cli.define_path("to", "docs/results/collapse_hot.png", "Where the picture goes.")


def main() -> None:
  """Draws a heatmap of each run, the published one after the first."""
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import Normalize
  from matplotlib.figure import Figure

  from entropy_attn.report import draw, style

  panels = []
  for name, title in _TITLES.items():
    path = FLAGS.workdir / name / "seed0" / "summary.json"
    if not path.exists():
      raise UserError(f"--workdir={FLAGS.workdir} has no finished run {name}: run configs/studies/collapse.py there")
    summary = json.loads(path.read_text())
    below = f"{summary['architecture']} · PPL {summary['perplexity']:.0f}"
    panels.append((draw.array(summary["entropy_LxH"]), title, below, summary["max_entropy"]))
  largest = panels[0][3]
  theirs = np.asarray(published.FIGURE_3F)
  panels.insert(1, (theirs, "The same, as published", "SM, GPT-2 small · NaN", largest))
  figure = Figure(figsize=(10.4, 3.6), dpi=style.DPI)
  sides = {"left": 0.04, "right": 0.925, "bottom": 0.12, "top": 0.88, "wspace": 0.14}  # titles may be wide
  for axes, (values, title, below, _) in zip(figure.subplots(1, len(panels), gridspec_kw=sides), panels, strict=True):
    draw.heatmap(axes, values, (0, largest))
    axes.set_ylabel("layer" if values is panels[0][0] else "")
    axes.set_title(below, fontsize=9, loc="left", color=style.MUTED)
    axes.text(0, 1.09, title, transform=axes.transAxes, fontsize=10.5, fontweight="bold", color=style.INK)
  mappable = ScalarMappable(Normalize(0, largest), style.CMAP)
  draw.entropy_ticks(figure.colorbar(mappable, cax=figure.add_axes((0.94, 0.12, 0.01, 0.76))), largest)
  figure.savefig(FLAGS.to)
  print(FLAGS.to)


if __name__ == "__main__":
  cli.run(define_flags, main)
