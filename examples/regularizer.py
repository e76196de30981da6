"""The entropy penalty on an attention that is not ours: all that it takes is the probabilities."""

import jax
import jax.numpy as jnp
import optax

from entropy_attn import entropy


def attention_of(weights_2xDxHxK):  # anybody's: its probabilities [B, H, T, S]
  q, k = jnp.einsum("BTD,nDHK->nBTHK", x_BxTxD, weights_2xDxHxK)
  return jax.nn.softmax(jnp.einsum("BTHK,BSHK->BHTS", q, k), where=jnp.tril(jnp.ones((16, 16), bool)))


def penalty_of(weights_2xDxHxK):  # what a loss adds, times a weight
  p = attention_of(weights_2xDxHxK)
  entropy_BxHxT = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1)  # 0 log 0 = 0, in its gradient too
  return entropy.penalty(entropy_BxHxT.swapaxes(1, 2)[None], jnp.full((1, 4), 0.5))


x_BxTxD = jax.random.normal(jax.random.key(0), (8, 16, 32))
weights = jax.random.normal(jax.random.key(1), (2, 32, 4, 8)) / 8
before, gradient = jax.value_and_grad(penalty_of)(weights)
updates, _ = (optimizer := optax.adam(0.01)).update(gradient, optimizer.init(weights))
print(f"penalty {before:.3f}, after a step {penalty_of(optax.apply_updates(weights, updates)):.3f}")
