"""Entropy-guided attention at a laptop's size: EReg(SM(t)+ScFuFFN), L=6, H=4, d=128, T=128.

    python -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart

It trains on the Python sources of the machine's own standard library: nothing is downloaded.
Time: about 4 minutes on two quiet cores. It must reach a loss of 4.3: measured 4.242, PPL 69.5, head shares
0 / 0 / 100 / 0 % (seed 0, CPython 3.11.7; another version's library is another text).
configs/studies/compare.py trains the models to compare it with.
"""

from entropy_attn import config


def get_config():
  return config.codeparrot("quick", "ereg")
