"""EReg(SM(t)+ScFuFFN), entropy-guided attention, on CodeParrot: Tables 2, 3, 7 and 8.

    python -m entropy_attn.main --config=configs/codeparrot_ereg.py --workdir=runs/codeparrot_ereg

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_ereg.py:T256.
Time: about 0.7 h (T128, T256) or 0.8 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 3.21 (T128), 2.92 (T256), 3.13 (L18); 2.08 % of the heads in the top bin (T128).
quick: measured PPL 69.5, head shares 0 / 0 / 100 / 0 % (one seed; Max 3.88).
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "ereg")
