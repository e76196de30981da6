"""SM+LN+R, on CodeParrot: Tables 2, 3, 7 and 8.

    python -m entropy_attn.main --config=configs/codeparrot_ln_relu.py --workdir=runs/codeparrot_ln_relu

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_ln_relu.py:T256.
Time: about 1.1 h (T128, T256) or 1.5 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 2.76 (T128), 2.41 (T256), 2.63 (L18); head shares 5.6 / 16.7 / 74.3 / 3.5 % (T128).
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "ln_relu")
