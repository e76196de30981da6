"""SM+LN, on CodeParrot: Table 2.

    python -m entropy_attn.main --config=configs/codeparrot_ln.py --workdir=runs/codeparrot_ln

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_ln.py:T256.
Time: about 1.1 h (T128, T256) or 1.5 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 3.38 (T128); no head shares. Nothing for T256 and L18.
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "ln")
