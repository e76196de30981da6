"""The attention in a Flax NNX module of one's own, with a temperature that each head learns."""

from flax import nnx
import jax
import jax.numpy as jnp

import entropy_attn


class Attention(nnx.Module):
  def __init__(self, rngs):
    self.qkv, self.temperature = nnx.LinearGeneral(32, (3, 4, 8), rngs=rngs), nnx.Param(jnp.full(4, 0.5))

  def __call__(self, x_BxTxD):
    q, k, v = jnp.moveaxis(self.qkv(x_BxTxD), 2, 0)
    return entropy_attn.dot_product_attention(q, k, v, temperature=self.temperature[...], is_causal=True)


x_BxTxD = jax.random.normal(jax.random.key(0), (2, 16, 32))
attention = Attention(nnx.Rngs(1))
gradient = nnx.jit(nnx.grad(lambda module: module(x_BxTxD)[1].mean()))(attention)
print("what a warmer head gains in entropy, nats a unit:", gradient["temperature"][...])
