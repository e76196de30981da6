"""Table 8: the four models on CodeParrot with 18 layers.

    python -m entropy_attn.study --study=configs/studies/table8.py --workdir=runs/table8 --jobs=2

smoke: seconds a run. small: the quick setting with 9 layers for its 6, as 18 for 12; three seeds, 12 runs: about 50
minutes on two quiet cores with --jobs=2, computed from the quickstart's time. paper: about 5 h on one H100, computed.
Published (paper): PPL SM+LN+G 2.56, SM+LN+R 2.63, SM+ScFuFFN 3.24, EReg 3.13; GB 37.17, 13.34, 8.83, 8.83.
"""

from entropy_attn.study import Study, scales


def get_study(scale):
  names = ("ln_gelu", "ln_relu", "scfuffn", "ereg")
  rows = [scales.row(name, scale, setting="L18") for name in names]
  return Study(rows, figures=("pareto",), baseline="ln_gelu", pairs=(("ereg", "scfuffn"), ("ereg", "ln_gelu")))
