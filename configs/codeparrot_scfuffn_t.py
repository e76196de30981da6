"""SM(t)+ScFuFFN: learnable temperature, no regulariser, on CodeParrot: not in the paper's tables.

    python -m entropy_attn.main --config=configs/codeparrot_scfuffn_t.py --workdir=runs/codeparrot_scfuffn_t

Argument: T128 (default), T256 (twice the context), L18 (18 layers), quick (a laptop's size),
as in --config=configs/codeparrot_scfuffn_t.py:T256.
Time: about 0.7 h (T128, T256) or 0.8 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: nothing.
quick: measured PPL 78.0, head shares 0 / 0 / 17 / 83 % (one seed; Max 3.88).
"""

from entropy_attn import config


def get_config(setting: str = "T128"):
  return config.codeparrot(setting, "scfuffn_t")
