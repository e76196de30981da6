"""SM+ScFuFFN: scaled residual, one fused linear, on CodeParrot: Tables 2, 3, 7 and 8.

    python -m entropy_attn.main --config=configs/codeparrot_scfuffn.py --workdir=runs/codeparrot_scfuffn

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_scfuffn.py:T256.
Time: about 0.7 h (T128, T256) or 0.8 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 3.48 (T128), 3.03 (T256), 3.24 (L18); no head shares.
quick: measured PPL 80.8, head shares 0 / 0 / 0 / 100 % (one seed; Max 3.88).
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "scfuffn")
