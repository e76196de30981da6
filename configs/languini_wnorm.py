"""SM+WNorm: weight normalisation of chosen linears, on Languini books: not in the paper's tables.

    python -m entropy_attn.main --config=configs/languini_wnorm.py --workdir=runs/languini_wnorm

Argument: TARGETS[,BUDGET]: qk, ffn (default), qk+ffn, qkv+ffn or qkvo+ffn; then 1.2B (default), 2.4B or 4.8B,
as in --config=configs/languini_wnorm.py:qk+ffn,2.4B.
Time: about 0.5 h (1.2B), 1.0 h (2.4B) or 2.1 h (4.8B) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: nothing.
"""

from entropy_attn import config


def get_config(argument: str = "ffn"):
  targets, _, budget = argument.partition(",")
  return config.languini(budget or "1.2B", "wnorm", targets)
