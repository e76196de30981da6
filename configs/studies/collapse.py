"""Entropy collapse on a laptop: SM's deep heads go to zero entropy within 40 steps; what cures it, and what does not.

    python -m entropy_attn.study --study=configs/studies/collapse.py --workdir=runs/collapse --jobs=2
    python -m entropy_attn.report --workdir=runs/collapse

small: depth, a high rate and no warm-up are what it takes: L=12, H=4, d=64, T=128, float32, 250 steps of 2,048 tokens
at a peak rate of 1.5e-3 and, rows named …_hot, of 2e-3. Nine runs, about 12 minutes on two cores. smoke: seconds a run.
paper: GPT-2 small at the published settings, where SM ended in NaN; about 5 h on one H100, computed.
Measured: SM at 2e-3 has 42 / 12 / 4 / 42 % of its heads by quarter of Max (published: 33 / 10 / 12 / 45), PPL 537;
SM+LN 237, EReg(SM(t)+ScFuFFN) 173. docs/results.md has the table and what of it cures what.
Published (Figures 2, 3f): SM's deepest heads near zero, its loss NaN; norms and the scaled FFN prevent it.
"""

from entropy_attn.study import Study, scales

SMALL = {
  "model.num_layers": 12, "model.d_model": 64, "train.steps": 250, "train.batch_size": 16, "train.log_every": 5,
  "train.checkpoint_every": 250, "eval.every": 0, "eval.batches": 20, "optimizer.warmup_fraction": 0.0,
}  # fmt: skip
RATE, HOT = 1.5e-3, 2e-3  # peaks of the learning rate
ARCHITECTURES = ("sm", "ln", "scffn", "scfuffn", "ereg")
ALSO_HOT = ("sm", "ln", "scfuffn", "ereg")


def get_study(scale):
  at = lambda rate: SMALL | {"optimizer.learning_rate": rate}
  rows = [scales.row(architecture, scale, small=at(RATE), seeds=(0,)) for architecture in ARCHITECTURES]
  if scale == "small":
    rows += [
      scales.row(architecture, scale, name=f"{architecture}_hot", small=at(HOT), seeds=(0,))
      for architecture in ALSO_HOT
    ]
  return Study(rows, figures=("figure2a", "figure2b", "figure3", "figure5"), baseline="ln")
