"""Entropy-guided attention against its own parts and against the full baseline, at a laptop's size.

    python -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare

small: four runs of the quick setting, one seed: about 20 minutes on two quiet cores. smoke: seconds a run. paper: the
same four at full size on CodeParrot.
Expected (small): entropy guidance empties the top bin of the heads and brings the perplexity near SM+LN+G's. Measured
(one seed, Max 3.88): ereg 69.5, 0 / 0 / 100 / 0 %; temperature_only 78.0, 0 / 0 / 17 / 83 %; softmax_only 80.8,
0 / 0 / 0 / 100 %; baseline 65.9, 0 / 0 / 33 / 67 %.
"""

from entropy_attn.study import Study, scales

ROWS = {"ereg": "ereg", "temperature_only": "scfuffn_t", "softmax_only": "scfuffn", "baseline": "ln_gelu"}


def get_study(scale):
  rows = [scales.row(architecture, scale, name=name, seeds=(0,)) for name, architecture in ROWS.items()]
  return Study(rows, baseline="baseline", pairs=(("ereg", "temperature_only"), ("ereg", "softmax_only")))
