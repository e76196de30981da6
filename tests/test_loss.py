from hypothesis import given, settings
from hypothesis import strategies as st
import inputs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn.loss import cross_entropy_sum


def whole(x, head, targets, weights):
  """The same with all logits, in float64."""
  log_p = jax.nn.log_softmax(x @ head)
  return -jnp.sum(jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * weights)


@settings(deadline=None, max_examples=15)
@given(
  shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 8, 13, 32]), st.integers(1, 6), st.integers(1, 40)),
  seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_equal_those_of_all_logits_at_once(shape, seed):
  x, head, targets, weights = inputs.of_loss(seed, *shape)
  gradients = lambda fn: jax.value_and_grad(lambda *operands: 3 * fn(*operands), argnums=(0, 1))
  loss, grads = jax.jit(gradients(cross_entropy_sum))(*map(jnp.float32, (x, head)), targets, jnp.float32(weights))
  with jax.enable_x64():
    expected, expected_grads = gradients(whole)(*map(jnp.asarray, (x, head, targets, weights)))
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
  for gradient, true in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(gradient, true, rtol=1e-4, atol=1e-5)


def test_the_value_without_gradients_is_the_same():
  x, head, targets, weights = inputs.of_loss(0, 2, 13, 4, 9)
  x, head = jnp.float32(x), jnp.float32(head)
  fn = lambda x: cross_entropy_sum(x, head, targets, weights)
  np.testing.assert_allclose(fn(x), jax.value_and_grad(fn)(x)[0], rtol=1e-6)


def test_a_token_without_weight_is_not_looked_at():
  x, head, targets, weights = inputs.of_loss(1, 2, 9, 4, 9)
  weights[1, 3] = 0
  x[1, 3] = np.nan
  loss, (dx, dhead) = jax.value_and_grad(cross_entropy_sum, argnums=(0, 1))(
    jnp.float32(x), jnp.float32(head), targets, jnp.float32(weights)
  )
  assert np.isfinite(loss) and np.all(dx[1, 3] == 0)
  weights[1, 3] = 1
  assert np.isnan(cross_entropy_sum(jnp.float32(x), jnp.float32(head), targets, jnp.float32(weights)))
  assert dhead.shape == head.shape


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_bfloat16_products_are_accumulated_in_float32(dtype):
  x, head, targets, weights = inputs.of_loss(2, 2, 16, 64, 50)
  rounded = [np.float64(jnp.asarray(a, dtype)) for a in (x, head)]
  ours = cross_entropy_sum(jnp.float32(x), jnp.float32(head), targets, jnp.float32(weights), dtype)
  np.testing.assert_allclose(ours, whole(*map(jnp.asarray, rounded), targets, weights), rtol=1e-5)
