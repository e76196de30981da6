"""Figures 7 and 8: the tolerance margin gamma of the regulariser, from 0.05 to 0.30.

    python -m entropy_attn.study --study=configs/studies/gamma.py --workdir=runs/gamma --jobs=2

smoke: seconds a run. small: the quick setting as it is, three seeds, 18 runs: about 50 minutes on two quiet cores with
--jobs=2, computed from the quickstart's time. paper: CodeParrot, T = 128, about 4.5 h on one H100, computed.
Published (paper): heads in the top quarter of Max 0.7 % for gamma ≤ 0.15, 2.08 % at 0.20, 3.47 % at 0.25, 6.25 % at
0.30; PPL 3.21 at 0.20, the others were not printed.
"""

from entropy_attn.study import Study, scales

GAMMAS = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)


def get_study(scale):
  rows = [
    scales.row("ereg", scale, name=f"gamma{gamma:.2f}", overrides={"regularizer.gamma": gamma}) for gamma in GAMMAS
  ]
  return Study(
    rows,
    figures=("figure7", "figure8"),
    baseline="gamma0.20",
    pairs=(("gamma0.05", "gamma0.20"), ("gamma0.30", "gamma0.20")),
  )
