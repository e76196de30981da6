"""Entropy-guided attention against its own parts and against the full baseline, at a laptop's size.

    python -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare

Four runs of the quick setting: about 20 minutes on two quiet cores.
Expected: entropy guidance empties the top bin of the heads and brings the perplexity near SM+LN+G's. Measured (one
seed, Max 3.88): ereg 69.5, 0 / 0 / 100 / 0 %; temperature_only 78.0, 0 / 0 / 17 / 83 %; softmax_only 80.8,
0 / 0 / 0 / 100 %; baseline 65.9, 0 / 0 / 33 / 67 %.
"""

from entropy_attn.study import Run


def get_study():
  return [
    Run("ereg", "configs/quickstart.py"),
    Run("temperature_only", "configs/codeparrot_scfuffn_t.py:quick"),
    Run("softmax_only", "configs/codeparrot_scfuffn.py:quick"),
    Run("baseline", "configs/codeparrot_ln_gelu.py:quick"),
  ]
