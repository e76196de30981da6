"""Attention that returns its entropy: one public function and its implementations."""

import jax
import jax.numpy as jnp

from entropy_attn.entropy import softmax_with_entropy

IMPLEMENTATIONS = ("auto", "reference")


def dot_product_attention(
  q_BxTxHxK: jax.Array,
  k_BxSxHxK: jax.Array,
  v_BxSxHxK: jax.Array,
  *,
  temperature: jax.Array | None = None,
  causal: bool = True,
  mask: jax.Array | None = None,
  scale: float | None = None,
  implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """`jax.nn.dot_product_attention` that also returns the entropy of each query's attention.

  a_ij = softmax_j(scale q_i·k_j / t_i), out_i = sum_j a_ij v_j, entropy_i = −sum_j a_ij log a_ij, all differentiable.

  Args:
    q_BxTxHxK: queries.
    k_BxSxHxK: keys; their heads may be fewer if they divide H (grouped-query attention).
    v_BxSxHxK: values, with the keys' heads.
    temperature: t, broadcast to [H] or [H, T] (paper, appendix A); above 1 diffuses, below 1 sharpens. None: 1.
    causal: query i attends to keys j ≤ i.
    mask: boolean, broadcastable to [B, H, T, S]; True where a key may be attended.
    scale: of the logits; None: 1 / sqrt(K).
    implementation: `reference` materialises [B, H, T, S] and takes every input; `auto` chooses for the platform.

  Returns:
    out [B, T, H, K] in the dtype of v; entropy [B, T, H] in nats, float32 (float64 for float64 inputs). Rows that may
    attend to nothing are zero in both; row 0 of causal attention has entropy 0.

  Raises:
    ValueError: for an unknown implementation, or shapes that do not fit.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
  _check_shapes(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK)
  _, T, H, K = q_BxTxHxK.shape
  scale = K**-0.5 if scale is None else scale
  return _reference(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, _temperature(temperature, H, T), causal, mask, scale)


def _reference(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, temperature_HxT, causal, mask, scale):
  B, T, H, K = q_BxTxHxK.shape
  S, G = k_BxSxHxK.shape[1:3]
  q_BxTxGxRxK = q_BxTxHxK.reshape(B, T, G, H // G, K)
  wide = jnp.promote_types(q_BxTxHxK.dtype, jnp.float32)
  logits = jnp.einsum("BTGRK,BSGK->BGRTS", q_BxTxGxRxK, k_BxSxHxK, preferred_element_type=wide)
  logits_BxHxTxS = logits.reshape(B, H, T, S) * jnp.asarray(scale, wide)
  if temperature_HxT is not None:
    logits_BxHxTxS = logits_BxHxTxS / temperature_HxT.astype(wide)[:, :, None]
  if causal:
    causal_TxS = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    mask = causal_TxS if mask is None else mask & causal_TxS
  probabilities_BxHxTxS, entropy_BxHxT = softmax_with_entropy(logits_BxHxTxS, mask)
  probabilities = probabilities_BxHxTxS.astype(v_BxSxHxK.dtype).reshape(B, G, H // G, T, S)
  out_BxTxGxRxK = jnp.einsum("BGRTS,BSGK->BTGRK", probabilities, v_BxSxHxK)
  return out_BxTxGxRxK.reshape(B, T, H, v_BxSxHxK.shape[-1]), entropy_BxHxT.transpose(0, 2, 1)


def _temperature(temperature, H: int, T: int):
  if temperature is None:
    return None
  temperature = jnp.asarray(temperature)
  if temperature.ndim < 2:
    temperature = jnp.broadcast_to(temperature, (H,))[:, None]
  return jnp.broadcast_to(temperature, (H, T))


def _check_shapes(q, k, v) -> None:
  for name, array in (("q", q), ("k", k), ("v", v)):
    if array.ndim != 4:
      raise ValueError(f"{name} has shape {array.shape}: it needs four axes, [batch, length, heads, width]")
  if not (q.shape[0] == k.shape[0] == v.shape[0] and k.shape[1:3] == v.shape[1:3] and q.shape[3] == k.shape[3]):
    raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"{q.shape[2]} query heads are not divisible by {k.shape[2]} key heads")
