"""Random float64 inputs, in NumPy, of what several test modules try: attention and the losses.

Letters: B batch, T length, H heads, G heads of keys, K head width, D width, V vocabulary.
"""

import numpy as np


def random_qkv(rng, B=2, T=7, H=4, K=8, G=None):
  """q [B, T, H, K], k and v [B, T, G, K]."""
  return (
    rng.normal(size=(B, T, H, K)),
    rng.normal(size=(B, T, G or H, K)),
    rng.normal(size=(B, T, G or H, K)),
  )


def of_loss(seed, B, T, D, V):
  """x [B, T, D], head [D, V], targets [B, T] and weights [B, T], a fifth of them 0."""
  rng = np.random.default_rng(seed)
  weights = rng.random((B, T)) * (rng.random((B, T)) < 0.8)
  return rng.normal(size=(B, T, D)), rng.normal(size=(D, V)), rng.integers(0, V, (B, T)), weights
