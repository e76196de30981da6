"""Independent float64 NumPy implementations that the tests compare with; written from the formulas alone."""

import math

import numpy as np


def attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, temperature_HxT=None, causal=True, scale=None):
  """Row by row, with -sum a log a over the keys of nonzero probability."""
  B, T, H, K = q_BxTxHxK.shape
  scale = 1 / math.sqrt(K) if scale is None else scale
  out, entropy = np.zeros(q_BxTxHxK.shape[:3] + v_BxTxHxK.shape[3:]), np.zeros((B, T, H))
  for b, t, h in np.ndindex(B, T, H):
    keys = range(t + 1) if causal else range(k_BxTxHxK.shape[1])
    scores = np.array([q_BxTxHxK[b, t, h] @ k_BxTxHxK[b, s, h] for s in keys]) * scale
    if temperature_HxT is not None:
      scores = scores / temperature_HxT[h, t]
    a = np.exp(scores - scores.max())
    a /= a.sum()
    out[b, t, h] = sum(a[s] * v_BxTxHxK[b, s, h] for s in keys)
    entropy[b, t, h] = -sum(p * math.log(p) for p in a if p > 0)
  return out, entropy


def penalty_per_query_sum(entropy_LxBxTxH, theta_LxH, gamma):
  """The released code's loops: every query's entropy is penalised, summed over queries; averaged over the rest."""
  L, B, T, H = entropy_LxBxTxH.shape
  e_max = math.log(T)
  layers = []
  for l in range(L):
    heads = []
    for h in range(H):
      total = 0.0
      for b in range(B):
        for t in range(T):
          delta = entropy_LxBxTxH[l, b, t, h] - theta_LxH[l, h] * e_max
          total += delta**2 if abs(delta) > gamma * e_max else 0.0
      heads.append(total / B)
    layers.append(sum(heads) / H)
  return sum(layers) / L


def penalty_head_mean(entropy_LxBxTxH, theta_LxH, gamma):
  """Algorithm 1 line by line, for each sequence: E(l,h) is the mean over queries."""
  L, B, T, H = entropy_LxBxTxH.shape
  e_max = math.log(T)
  total = 0.0
  for b in range(B):
    loss = 0.0
    for l in range(L):
      layer_loss = 0.0
      for h in range(H):
        delta = np.mean(entropy_LxBxTxH[l, b, :, h]) - theta_LxH[l, h] * e_max
        layer_loss += delta**2 if abs(delta) > gamma * e_max else 0.0
      loss += layer_loss / H
    total += loss / L
  return total / B


def gpt(params, model_config, tokens_BxT):
  """Logits and entropies [L, B, T, H] of plain (unnormalised) parameters, layer by layer."""
  c = model_config
  p = _to_float64(params)
  H, D, K = c.num_heads, c.d_model, c.d_model // c.num_heads
  T = tokens_BxT.shape[1]
  x = p["token_embedding"][tokens_BxT] * (math.sqrt(D) if c.scale_embeddings else 1.0)
  x = x + p["position_embedding"][:T]
  entropies = []
  with_ffn = c.num_layers - c.ffns_removed
  for l in range(c.num_layers):
    block = _layer(p["blocks"], l) if l < with_ffn else _layer(p["blocks_without_ffn"], l - with_ffn)
    h = _layer_norm(x, block["ln_attn"], c.layer_norm_epsilon) if c.norm == "layernorm" else x
    q, k, v = (_linear(h, block[name]).reshape(*h.shape[:2], H, D // H) for name in "qkv")
    if c.value_residual == "fixed" and l == 0:
      first = v
    elif c.value_residual == "fixed":
      v = 0.5 * v + 0.5 * first
    t = block.get("temperature")
    if t is not None:
      t = np.broadcast_to(t[:, None] if t.ndim == 1 else t[:, :T], (H, T))
    divisors = {"root_width": K**0.5, "layer": l + 1, "root_width_and_layer": K**0.5 * (l + 1), "none": 1}
    out, entropy = attention(q, k, v, t, scale=1 / divisors[c.score_scale])
    entropies.append(entropy)
    x = x + _linear(out.reshape(x.shape), block["o"])
    if l >= with_ffn:
      continue
    h = _layer_norm(x, block["ln_ffn"], c.layer_norm_epsilon) if c.norm == "layernorm" else x
    if c.ffn == "fused":
      h = _linear(h, block["fused"])
    else:
      h = _linear(_activate(_linear(h, block["up"]), c), block["down"])
    x = block["beta"] * x + h / block["alpha"] if c.residual_scaling else x + h
  x = _layer_norm(x, p["ln_f"], c.layer_norm_epsilon)
  return x @ (p["token_embedding"].T if c.tie_embeddings else p["head"]), np.stack(entropies)


def _to_float64(tree):
  return {k: _to_float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def _layer(tree, l):
  return {k: _layer(v, l) if isinstance(v, dict) else v[l] for k, v in tree.items()}


def _layer_norm(x, p, epsilon):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def _linear(x, p):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _activate(x, c):
  if c.activation == "relu":
    return np.maximum(x, 0)
  if c.activation == "identity":
    return x
  if c.gelu == "erf":
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
