"""Table 7: the four models on CodeParrot at T = 256.

    python -m entropy_attn.study --study=configs/studies/table7.py --workdir=runs/table7 --jobs=2

smoke: seconds a run. small: the quick setting at T = 256 (600 steps of 16 sequences), three seeds, 12 runs: about 40
minutes on two quiet cores with --jobs=2, computed from the quickstart's time. paper: about 4 h on one H100, computed.
Published (paper): PPL SM+LN+G 2.35, SM+LN+R 2.41, SM+ScFuFFN 3.03, EReg 2.92; GB 58.51, 26.73, 20.72, 20.72.
"""

from entropy_attn.study import Study, scales


def get_study(scale):
  rows = [scales.row(name, scale, setting="T256") for name in ("ln_gelu", "ln_relu", "scfuffn", "ereg")]
  return Study(rows, figures=("pareto",), baseline="ln_gelu", pairs=(("ereg", "scfuffn"), ("ereg", "ln_gelu")))
