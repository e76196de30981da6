"""Head statistics of a saved array: the mean entropy of each head [layers, heads], in nats.

    python examples/head_statistics.py [FILE.npy]

Without a file: heads of a softmax-only model that collapsed (SM at the higher rate of configs/studies/collapse.py).
"""

import pathlib
import sys

import numpy as np

import entropy_attn

file = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("heads.npy")
entropy_LxH = np.load(file)
most = 3.88  # the largest mean entropy of a causal head: of log(1) … log(128)
shares = entropy_attn.entropy.head_shares(entropy_LxH, most)
print("heads by quarter, %:", *(f"{100 * share:.0f}" for share in shares))
print("collapsed:", *entropy_attn.entropy.collapsed_heads(entropy_LxH, most))
