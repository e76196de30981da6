"""SM+LN, on Languini books: not in the paper's tables.

    python -m entropy_attn.main --config=configs/languini_ln.py --workdir=runs/languini_ln

Argument: the tokens seen, 1.2B (default), 2.4B or 4.8B,
as in --config=configs/languini_ln.py:2.4B.
Time: about 0.5 h (1.2B), 1.0 h (2.4B) or 2.1 h (4.8B) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: nothing.
"""

from entropy_attn import config


def get_config(budget: str = "1.2B"):
  return config.languini(budget, "ln")
