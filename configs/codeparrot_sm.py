"""SM, softmax alone, on CodeParrot: Table 2.

    python -m entropy_attn.main --config=configs/codeparrot_sm.py --workdir=runs/codeparrot_sm

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_sm.py:T256.
Time: about 1.1 h (T128, T256) or 1.5 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: NaN, with head shares 32.6 / 9.7 / 12.5 / 45.1 % (T128). Nothing for T256 and L18. A run that
turns non-finite is recorded as diverged, and is no failure.
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "sm")
