"""Entropy-guided attention against its own parts and against the full baseline, at a laptop's size.

    python -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare

Four runs of the quick setting. Time: TODO-MEASURED.
Expected: entropy guidance empties the top bin of the heads and brings the perplexity near SM+LN+G's. In a prototype
(one seed, bins' Max 3.87): ereg 41.5, 0 / 0 / 96 / 4 %; temperature_only 47.5, 0 / 0 / 29 / 71 %; softmax_only 53.4,
0 / 0 / 0 / 100 %; baseline 39.7, 0 / 0 / 33 / 67 %.
"""

from entropy_attn.study import Run


def get_study():
  return [
    Run("ereg", "configs/quickstart.py"),
    Run("temperature_only", "configs/codeparrot_scfuffn_t.py:quick"),
    Run("softmax_only", "configs/codeparrot_scfuffn.py:quick"),
    Run("baseline", "configs/codeparrot_ln_gelu.py:quick"),
  ]
