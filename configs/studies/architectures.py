"""All architectures of the paper (Tables 1, 2, 5 and 6), at a laptop's size.

    python -m entropy_attn.study --study=configs/studies/architectures.py --workdir=runs/architectures

Twenty runs of the quick setting cut to 200 steps of 16 sequences (0.4 M tokens), both normalisations with all five
choices of linears. Time: about 40 minutes on two quiet cores; benchmarks/architectures.md has the table.
A run that turns non-finite is recorded as diverged: without LayerNorm that is a finding, and no failure.
"""

from entropy_attn.config import ARCHITECTURES, CHOICES
from entropy_attn.study import Run

BUDGET = {"train.steps": 200, "train.batch_size": 16, "eval.every": 0, "eval.batches": 20}


def get_study():
  plain = [name for name, fields in ARCHITECTURES.items() if "reparam" not in fields]
  files = {name: f"configs/codeparrot_{name}.py:quick" for name in plain}
  for name in ("wnorm", "snorm"):
    files |= {
      f"{name}_{targets}": f"configs/codeparrot_{name}.py:{targets},quick"
      for targets in CHOICES["model.reparam_targets"]
    }
  return [Run(name, file, BUDGET | {"train.on_nonfinite": "record"}) for name, file in files.items()]
