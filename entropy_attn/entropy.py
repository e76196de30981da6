"""Attention entropy as pure functions: the value itself, its statistics, and the penalty on it.

Letters in array names: B batch, T query, S key, H head, L layer. Entropies are in nats.
"""

import jax
import jax.numpy as jnp
import numpy as np

REDUCTIONS = ("per_query_sum", "head_mean")
SIDES = ("both", "upper")
STRENGTHS = ("shared", "per_head")
CEILINGS = ("log_T", "causal")
THRESHOLDS = {  # the shape of what is learned of the thresholds [L, H], which it broadcasts to; None: nothing is
  "learned": lambda L, H: (L, H),
  "shared": lambda L, H: (1, 1),
  "fixed": lambda L, H: None,
}

# Below it exp(s − m) counts for nothing; (s − m) is clamped to it so that (s − m) exp(s − m) is never −inf × 0.
_LEAST = -80.0


def softmax_with_entropy(logits: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Softmax over the last axis and its exact entropy.

  With m the largest logit, l = sum exp(s − m) and r = sum exp(s − m)(s − m), the entropy is log l − r / l: the
  `lse − sum a s` of the paper's eq. 7 without its epsilon, and exactly 0 for a one-hot row.

  Args:
    logits: [..., S] scaled scores, float32 or float64.
    mask: broadcastable to logits, True where a key may be attended; None: all.

  Returns:
    probabilities [..., S] and entropy [...]. A fully masked row gives zeros; a row with a NaN or +inf logit gives NaN.
  """
  mask = jnp.ones((), bool) if mask is None else mask
  # Where the compiler makes logits anew for each use, they are not the same to the last digit: s − m could be above 0.
  logits = jax.lax.optimization_barrier(logits)
  # Masked before s − m is taken: a scale of s would else be fused with the difference, unrounded as m is not.
  logits = jnp.where(mask, logits, -jnp.inf)
  m = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
  shifted = logits - jnp.where(jnp.isneginf(m), 0, m)
  weights = jnp.exp(shifted)
  l = jnp.sum(weights, axis=-1, keepdims=True)
  r = jnp.sum(weights * jnp.maximum(shifted, _LEAST), axis=-1, keepdims=True)
  l = jnp.where(l == 0, 1, l)
  return weights / l, jnp.squeeze(jnp.log(l) - r / l, axis=-1)


def head_means(entropy_LxBxTxH: jax.Array, weights_B: jax.Array | None = None) -> jax.Array:
  """Mean entropy of each head over batch and all queries, [L, H] (the statistic of Figures 2a and 3).

  Args:
    entropy_LxBxTxH: nats.
    weights_B: weight of each sequence, 0 for padding; None: all equal.
  """
  per_sequence_LxBxH = jnp.mean(entropy_LxBxTxH, axis=2)
  if weights_B is None:
    return jnp.mean(per_sequence_LxBxH, axis=1)
  weights_1xBx1 = weights_B[None, :, None]
  kept_LxBxH = jnp.where(weights_1xBx1 > 0, per_sequence_LxBxH * weights_1xBx1, 0)
  return jnp.sum(kept_LxBxH, axis=1) / jnp.sum(weights_B)


def nonfinite_rows(entropy_LxBxTxH: jax.Array) -> jax.Array:
  """Attention rows whose entropy is NaN or infinite, counted for each layer: int32 [L]."""
  return jnp.sum(~jnp.isfinite(entropy_LxBxTxH), axis=(1, 2, 3), dtype=jnp.int32)


def head_shares(entropy_LxH, max_entropy: float | None = None) -> jax.Array:
  """Shares of heads with entropy in [0, Max/4), [Max/4, Max/2), [Max/2, 3Max/4), [3Max/4, Max] (Figures 2a and 7).

  Args:
    entropy_LxH: mean entropy of each head, any shape.
    max_entropy: Max in nats; None: the largest finite one observed. The paper uses one Max, 3.87, for all models.

  Returns:
    [4] fractions of all heads. Non-finite heads are in no bin, so that the shares then sum to less than one; heads
    above Max count in the last bin.
  """
  entropy = jnp.asarray(entropy_LxH)
  entropy = entropy.astype(jnp.float64 if entropy.dtype == jnp.float64 else jnp.float32)
  finite = jnp.isfinite(entropy)
  largest = jnp.max(jnp.where(finite, entropy, 0)) if max_entropy is None else max_entropy
  bin_of = sum((entropy >= largest * k / 4).astype(jnp.int32) for k in (1, 2, 3))
  bin_of = jnp.where(entropy > 0, bin_of, 0)  # a head at zero has collapsed, even where Max is zero
  return jnp.stack([jnp.mean((bin_of == k) & finite) for k in range(4)])


def head_statistics(entropy_LxH, max_entropy: float) -> dict:
  """What a record says of the heads, NumPy arrays ready for `metrics`.

  Args:
    entropy_LxH: mean entropy of each head, nats.
    max_entropy: the bins' Max in nats.

  Returns:
    entropy_LxH, its layer means entropy_L, max_entropy, and the `head_shares` against it and against the largest
    observed entropy.
  """
  return {
    "entropy_LxH": np.asarray(entropy_LxH),
    "entropy_L": np.mean(entropy_LxH, axis=1),
    "max_entropy": max_entropy,
    "head_shares": np.asarray(head_shares(entropy_LxH, max_entropy)),
    "head_shares_observed_max": np.asarray(head_shares(entropy_LxH)),
  }


def collapsed_heads(entropy_LxH, max_entropy: float) -> list[str]:
  """The heads in the lowest bin, below Max/4, as 'L11H3'."""
  return [f"L{l}H{h}" for l, h in np.argwhere(np.asarray(entropy_LxH, float) < max_entropy / 4)]


def overloaded_heads(entropy_LxH, max_entropy: float) -> list[str]:
  """The heads in the highest bin, 3 Max/4 and above, as 'L11H3'."""
  return [f"L{l}H{h}" for l, h in np.argwhere(np.asarray(entropy_LxH, float) >= max_entropy * 3 / 4)]


def head_weights(strengths_LxH: jax.Array) -> jax.Array:
  """Weights of the heads' penalties, [L, H] with mean 1: a softmax of learned strengths, which grow by ascent.

  Weights that descended the loss would go to the heads that need none, or to zero. So the gradient of strengths has
  its sign reversed, and any optimizer moves them to where most is penalised: the penalty is then the larger one of a
  game (group DRO: Sagawa et al., 2020, arXiv:1911.08731, with heads as groups). With equal strengths it is the plain
  penalty.

  AERO (Jha & Reagen, 2024, arXiv:2410.13060) says that it adapts the strength of each head, and does it by the learned
  thresholds of `penalty`: "per-head strengths" beyond these have no published formula that we know of.
  """
  ascending_LxH = 2 * jax.lax.stop_gradient(strengths_LxH) - strengths_LxH
  return strengths_LxH.size * jax.nn.softmax(ascending_LxH, axis=(0, 1))


def penalty(
  entropy_LxBxTxH: jax.Array,
  thresholds_LxH: jax.Array,
  *,
  weights_BxT: jax.Array | None = None,
  strengths_LxH: jax.Array | None = None,
  gamma: float = 0.2,
  reduction: str = "per_query_sum",
  sides: str = "both",
  ceiling: str = "log_T",
) -> jax.Array:
  """The entropy penalty, a mean over layers, batch and heads: the same for any batch, accumulation or device count.

  With delta = E − theta E_max and Tol = gamma E_max, an entropy costs delta² where |delta| > Tol, else nothing.

  Args:
    entropy_LxBxTxH: nats.
    thresholds_LxH: theta, the threshold weights of each head.
    weights_BxT: weight of each query, or [B, 1] of each sequence; 0 for padding, whatever its entropy is. Queries are
      summed or averaged with them, and sequences averaged with the largest of theirs. None: all weigh the same.
    strengths_LxH: learned strengths of the heads; see `head_weights`. None: all weigh the same.
    gamma: the tolerance margin, in parts of E_max.
    reduction: per_query_sum penalises the entropy of each query and sums over queries (the released code);
      head_mean penalises the mean over queries of each head (Algorithm 1).
    sides: both, or upper to penalise only delta > Tol (section 4).
    ceiling: E_max is log T (Algorithm 1), or with causal what row i can reach, log(i+1), and its mean for head_mean.

  Returns:
    A scalar, nats². NaN where an entropy is NaN: nothing is hidden.

  Raises:
    ValueError: for a reduction, sides or ceiling that is not a choice, or shapes that do not fit.
  """
  _check("reduction", reduction, REDUCTIONS)
  _check("sides", sides, SIDES)
  _check("ceiling", ceiling, CEILINGS)
  L, B, T, H = entropy_LxBxTxH.shape
  if jnp.shape(thresholds_LxH) != (L, H):
    raise ValueError(f"thresholds_LxH has shape {jnp.shape(thresholds_LxH)}, the entropies need {(L, H)}")
  dtype = entropy_LxBxTxH.dtype
  keys_T = jnp.full((T,), T, dtype) if ceiling == "log_T" else jnp.arange(1, T + 1, dtype=dtype)
  max_1x1xTx1 = jnp.log(keys_T)[None, None, :, None]
  weights_1xBxTx1 = None
  if weights_BxT is not None:
    if jnp.shape(weights_BxT) not in ((B, T), (B, 1)):
      raise ValueError(f"weights_BxT has shape {jnp.shape(weights_BxT)}, the entropies need {(B, T)} or {(B, 1)}")
    weights_1xBxTx1 = jnp.broadcast_to(jnp.asarray(weights_BxT, dtype), (B, T))[None, :, :, None]
    entropy_LxBxTxH = jnp.where(weights_1xBxTx1 > 0, entropy_LxBxTxH, 0)
  if reduction == "head_mean":
    entropy_LxBxTxH = _mean_of_queries(entropy_LxBxTxH, weights_1xBxTx1)
    max_1x1xTx1 = _mean_of_queries(max_1x1xTx1, weights_1xBxTx1)
  delta = entropy_LxBxTxH - thresholds_LxH[:, None, None, :] * max_1x1xTx1
  distance = jnp.abs(delta) if sides == "both" else delta
  # Written so that a NaN delta stays NaN instead of falling on the free side of the comparison.
  cost = jnp.where(distance <= gamma * max_1x1xTx1, 0, delta**2)
  if strengths_LxH is not None:
    cost = cost * head_weights(strengths_LxH)[:, None, None, :]
  if weights_1xBxTx1 is None:
    return jnp.mean(jnp.sum(cost, axis=2))
  largest_1xBx1x1 = jnp.max(weights_1xBxTx1, axis=2, keepdims=True)
  weighed = cost * (largest_1xBx1x1 if reduction == "head_mean" else weights_1xBxTx1)
  return jnp.sum(jnp.mean(weighed, axis=(0, 3))) / jnp.sum(largest_1xBx1x1)


def _mean_of_queries(x_LxBxTxH, weights_1xBxTx1):
  if weights_1xBxTx1 is None:
    return jnp.mean(x_LxBxTxH, axis=2, keepdims=True)
  sum_1xBx1x1 = jnp.sum(weights_1xBxTx1, axis=2, keepdims=True)
  shares_1xBxTx1 = weights_1xBxTx1 / jnp.where(sum_1xBx1x1 == 0, 1, sum_1xBx1x1)
  return jnp.sum(x_LxBxTxH * shares_1xBxTx1, axis=2, keepdims=True)


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")
