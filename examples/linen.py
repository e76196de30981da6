"""The attention in a Flax linen module of one's own: what each head's entropy is comes out beside the values."""

import flax.linen as nn
import jax

import entropy_attn


class Attention(nn.Module):
  @nn.compact
  def __call__(self, x_BxTxD):
    q, k, v = (nn.DenseGeneral((4, 8), name=name)(x_BxTxD) for name in ("q", "k", "v"))
    out_BxTxHxK, entropy_BxTxH = entropy_attn.dot_product_attention(q, k, v, is_causal=True)
    return nn.DenseGeneral(32, axis=(-2, -1), name="o")(out_BxTxHxK), entropy_BxTxH


x_BxTxD = jax.random.normal(jax.random.key(0), (2, 16, 32))
(y_BxTxD, entropy_BxTxH), variables = jax.jit(Attention().init_with_output)(jax.random.key(1), x_BxTxD)
print("mean entropy of each head, nats:", entropy_BxTxH.mean(axis=(0, 1)))
