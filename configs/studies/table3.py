"""Tables 2 and 3, and Figures 2a, 2b, 3, 5 and 6: what each nonlinearity is worth, on CodeParrot at T = 128.

    python -m entropy_attn.study --study=configs/studies/table3.py --workdir=runs/table3 --jobs=2

Eight architectures. smoke: seconds a run. small: the quick setting with half its batch (600 steps of 2,048 tokens),
three seeds, 24 runs: about 35 minutes on two quiet cores with --jobs=2, computed from the quickstart's time. paper:
GPT-2 small on 2.1 B tokens, about 9 h on one H100, computed.
Published (paper): PPL SM+LN+G 2.69, SM+LN+R 2.76, SM+LN 3.38, SM+G 3.20, SM+R 2.94, SM NaN, SM+ScFuFFN 3.48,
EReg(SM(t)+ScFuFFN) 3.21; heads in the top quarter: SM+G 58 %, SM+R 23 %, SM 45 %, EReg 2 %; SM collapses (33 % of the
heads in the bottom quarter).
"""

from entropy_attn.study import Study, scales

ARCHITECTURES = ("ln_gelu", "ln_relu", "ln", "gelu", "relu", "sm", "scfuffn", "ereg")
SMALL = {"train.batch_size": 16}


def get_study(scale):
  return Study(
    [scales.row(architecture, scale, small=SMALL) for architecture in ARCHITECTURES],
    figures=("figure2a", "figure2b", "figure3", "figure5", "figure6", "pareto"),
    baseline="ln_gelu",
    pairs=(("ln_gelu", "ln_relu"), ("relu", "gelu"), ("ln_gelu", "gelu"), ("scfuffn", "sm"), ("ereg", "scfuffn")),
  )
