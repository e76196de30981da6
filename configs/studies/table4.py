"""Table 4: the four models on Languini books at T = 512, with three budgets of tokens.

    python -m entropy_attn.study --study=configs/studies/table4.py --workdir=runs/table4 --jobs=2

smoke: seconds a run. small: L=6, H=4, d=128 and Languini's optimizer on the Python library's sources; 0.8, 1.6 and
3.3 M tokens in place of 1.2, 2.4 and 4.8 B; one seed, 12 runs: about 45 minutes on two quiet cores with --jobs=2,
computed from the quickstart's time. paper: needs the tokenised books (data.path), about 9 h on one H100, computed.
Published (paper), PPL at 1.2 / 2.4 / 4.8 B: SM+LN+G 25.71 / 23.32 / 21.29, SM+LN+R 26.06 / 23.55 / 21.58, SM+ScFuFFN
33.77 / 30.82 / 28.59, EReg 31.54 / 28.70 / 26.55.
"""

from entropy_attn.study import Study, scales


def get_study(scale):
  rows = [
    scales.row(architecture, scale, name=f"{architecture}_{budget}", family="languini", setting=budget, seeds=(0,))
    for budget in ("1.2B", "2.4B", "4.8B")
    for architecture in ("ln_gelu", "ln_relu", "scfuffn", "ereg")
  ]
  return Study(
    rows, figures=("pareto",), baseline="ln_gelu_4.8B", pairs=[(f"ereg_{b}", f"scfuffn_{b}") for b in ("1.2B", "4.8B")]
  )
