"""SM+ScFFN: scaled residual, two linears, on CodeParrot: Table 6.

    python -m entropy_attn.main --config=configs/codeparrot_scffn.py --workdir=runs/codeparrot_scffn

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_scffn.py:T256.
Time: about 1.1 h (T128, T256) or 1.5 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 3.50 (T128), 3.04 (T256), 3.26 (L18) in AERO, arXiv 2410.13060; Table 6 has 3.478 (T128) for the
scaled FFN. No head shares.
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "scffn")
