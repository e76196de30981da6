"""All architectures of the paper (Tables 1, 2, 5 and 6), at a laptop's size.

    python -m entropy_attn.study --study=configs/studies/architectures.py --workdir=runs/architectures

small: twenty runs of the quick setting cut to 200 steps of 16 sequences (0.4 M tokens), both normalisations with all
five choices of linears. About 40 minutes on two quiet cores, 25 with --jobs=2; benchmarks/architectures.md has the
table. smoke: seconds a run. paper: all of them at full size on CodeParrot.
A run that turns non-finite is recorded as diverged: without LayerNorm that is a finding, and no failure.
"""

from entropy_attn.config import ARCHITECTURES, CHOICES
from entropy_attn.study import Study, scales

SMALL = {"train.steps": 200, "train.batch_size": 16, "eval.every": 0, "eval.batches": 20}


def get_study(scale):
  rows = []
  for architecture, fields in ARCHITECTURES.items():
    normalised = CHOICES["model.reparam_targets"] if "reparam" in fields else (None,)
    for targets in normalised:
      name = architecture if targets is None else f"{architecture}_{targets}"
      rows.append(scales.row(architecture, scale, name=name, targets=targets or "ffn", small=SMALL, seeds=(0,)))
  return Study(rows, baseline="ln_gelu")
