"""Table 6: three ways to a stable softmax-only model, weight or spectral normalisation of the FFN or its scaling.

    python -m entropy_attn.study --study=configs/studies/table6.py --workdir=runs/table6 --jobs=2

smoke: seconds a run. small: the quick setting as it is, three seeds, 9 runs: about 25 minutes on two quiet cores with
--jobs=2, computed from the quickstart's time. paper: CodeParrot, T = 128, about 3.3 h on one H100, computed.
Published (paper): PPL SM+WNorm(FFN) 3.640, SM+SNorm(FFN) 3.624, SM+ScFFN 3.478.
"""

from entropy_attn.study import Study, scales


def get_study(scale):
  rows = [scales.row(architecture, scale) for architecture in ("wnorm", "snorm", "scffn")]
  return Study(rows, baseline="scffn", pairs=(("scffn", "wnorm"), ("scffn", "snorm")))
