"""EReg(SM(t)+ScFuFFN), entropy-guided attention, on Languini books: Table 4.

    python -m entropy_attn.main --config=configs/languini_ereg.py --workdir=runs/languini_ereg

Argument: the tokens seen, 1.2B (default), 2.4B or 4.8B,
as in --config=configs/languini_ereg.py:2.4B.
Time: about 0.3 h (1.2B), 0.5 h (2.4B) or 1.1 h (4.8B) on one H100; computed at 40 % of its bf16 peak, not measured.
Published: PPL 31.54 (1.2B), 28.70 (2.4B), 26.55 (4.8B); no head shares.
"""

from entropy_attn import config


def get_config(budget: str = "1.2B"):
  return config.languini(budget, "ereg")
