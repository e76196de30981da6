"""SM+LN+R, on Languini books: Table 4.

    python -m entropy_attn.main --config=configs/languini_ln_relu.py --workdir=runs/languini_ln_relu

Argument: the tokens seen, 1.2B (default), 2.4B or 4.8B,
as in --config=configs/languini_ln_relu.py:2.4B.
Time: about 0.5 h (1.2B), 1.0 h (2.4B) or 2.1 h (4.8B) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 26.06 (1.2B), 23.55 (2.4B), 21.58 (4.8B); no head shares.
"""

from entropy_attn import config


def get_config(budget: str = "1.2B"):
  return config.languini(budget, "ln_relu")
