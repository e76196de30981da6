"""SM+LN+G, the baseline, on CodeParrot: Tables 2, 3, 7 and 8.

    python -m entropy_attn.main --config=configs/codeparrot_ln_gelu.py --workdir=runs/codeparrot_ln_gelu

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_ln_gelu.py:T256.
Time: about 1.1 h (T128, T256) or 1.5 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 2.69 (T128), 2.35 (T256), 2.56 (L18); head shares 4.2 / 13.9 / 73.6 / 8.3 % (T128).
quick: measured PPL 65.9, head shares 0 / 0 / 33 / 67 % (one seed; Max 3.88).
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "ln_gelu")
