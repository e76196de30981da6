"""The entropy penalty on an attention that is not ours: all that it takes is the probabilities."""

import jax
import jax.numpy as jnp
import optax

from entropy_attn import entropy

x_BxTxD = jax.random.normal(jax.random.key(0), (8, 16, 32))
weights = jax.random.normal(jax.random.key(1), (2, 32, 4, 8)) / 8


def penalty_of(weights_2xDxHxK):  # what a loss adds, times a weight; here of anybody's attention [B, H, T, S]
  logits = jnp.einsum("BTHK,BSHK->BHTS", *jnp.einsum("BTD,nDHK->nBTHK", x_BxTxD, weights_2xDxHxK))
  p = jax.nn.softmax(logits, where=jnp.tril(jnp.ones((16, 16), bool)))
  entropy_BxHxT = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1)  # 0 log 0 = 0, in its gradient too
  return entropy.penalty(entropy_BxHxT.swapaxes(1, 2)[None], jnp.full((1, 4), 0.5))


before, gradient = (value_and_gradient := jax.jit(jax.value_and_grad(penalty_of)))(weights)
updates, _ = optax.sgd(0.001).update(gradient, optax.sgd(0.001).init(weights))
print(f"penalty {before:.3f}, after a step {value_and_gradient(weights + updates)[0]:.3f}")
