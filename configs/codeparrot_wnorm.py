"""SM+WNorm: weight normalisation of chosen linears, on CodeParrot: Tables 5 and 6.

    python -m entropy_attn.main --config=configs/codeparrot_wnorm.py --workdir=runs/codeparrot_wnorm

Argument: TARGETS[,SETTING]: qk, ffn (default), qk+ffn, qkv+ffn or qkvo+ffn; then T128 (default), T256, L18 or quick,
as in --config=configs/codeparrot_wnorm.py:qk+ffn,T256.
Time: about 1.1 h (T128, T256) or 1.5 h (L18) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 3.89 (qk), 3.64 (ffn), 3.88 (qk+ffn), 3.93 (qkv+ffn), 3.98 (qkvo+ffn)
at T128, no head shares. Nothing for T256 and L18.
"""

from entropy_attn import config


def get_config(argument: str = "ffn"):
  targets, _, setting = argument.partition(",")
  return config.codeparrot(setting or "T128", "wnorm", targets)
