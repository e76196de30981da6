"""Fused attention that also returns its entropy: one implementation a file, all with the same two functions.

    forward(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, row_scale_HxT, keep, *, causal, window, softcap, with_entropy, with_rest)
      → Forward
    backward(the same five, forward: Forward, dout_BxTxHxK, dentropy_BxHxT, *, causal, window, softcap)
      → dq, dk, dv, drow_scale_BxHxT

`fused.py` gives them their derivatives and chooses among them.
"""

from typing import NamedTuple

import jax


class Forward(NamedTuple):
  """What a forward pass gives, and its backward pass may read.

  Two statistics instead of the log-sum-exp, their sum: with them log p = (s − largest) − log_sum is right to the last
  digits however large the logits s are.

  Attributes:
    out_BxTxHxK: in the dtype of the values.
    entropy_BxHxT: nats; None if it was not asked for.
    largest_BxHxT: the largest logit.
    log_sum_BxHxT: log sum_j exp(s_j − largest); 0 for a row without keys.
    rest_BxTxHxK: what rounding took from `out`; None where nothing, or if it was not asked for.
    unscaled_BxHxT: the largest logit before its scale, which the Pallas kernels measure the others from.
  """

  out_BxTxHxK: jax.Array
  entropy_BxHxT: jax.Array | None
  largest_BxHxT: jax.Array
  log_sum_BxHxT: jax.Array
  rest_BxTxHxK: jax.Array | None = None
  unscaled_BxHxT: jax.Array | None = None
