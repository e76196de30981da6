from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import random_qkv
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from trees import assert_close

import entropy_attn
from entropy_attn.kernels import fused, plan


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@settings(deadline=None, max_examples=20)
@given(shape=st.sampled_from([(1, 1, 1, 1), (2, 9, 3, 4), (1, 6, 2, 8)]), causal=st.booleans(),
       log_t=st.floats(-2, 2), seed=st.integers(0, 2**31))  # fmt: skip
def test_out_and_entropy_equal_the_row_by_row_oracle(implementation, shape, causal, log_t, seed):
  rng = np.random.default_rng(seed)
  q, k, v = random_qkv(rng, *shape)
  t = 10**log_t * rng.uniform(0.5, 2, (shape[2], shape[1]))
  with jax.enable_x64():
    out, value = entropy_attn.dot_product_attention(
      *map(jnp.asarray, (q, k, v)), temperature=jnp.asarray(t), is_causal=causal, implementation=implementation
    )
  expected_out, expected_entropy = oracles.attention(q, k, v, t, causal)
  np.testing.assert_allclose(out, expected_out, atol=1e-9)
  np.testing.assert_allclose(value, expected_entropy, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_out_equals_jax_nn_with_masks_and_key_groups(groups, causal):
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(rng, G=groups))
  mask = jnp.asarray(rng.random((2, 1, 7, 7)) < 0.7) | jnp.eye(7, dtype=bool)
  out, _ = entropy_attn.dot_product_attention(q, k, v, is_causal=causal, mask=mask)
  np.testing.assert_allclose(out, jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal), atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_gradients_of_both_outputs_equal_float64_finite_differences(implementation):
  rng = np.random.default_rng(1)
  q, k, v = random_qkv(rng, B=1, T=5, H=2, K=3)
  t = rng.uniform(0.5, 2, (2, 5))
  out_weight, entropy_weight = rng.normal(size=(1, 5, 2, 3)), rng.normal(size=(1, 5, 2))

  def oracle(*inputs):
    out, value = oracles.attention(*inputs)
    return (out * out_weight).sum() + (value * entropy_weight).sum()

  def ours(q, k, v, t):
    out, value = entropy_attn.dot_product_attention(
      q, k, v, temperature=t, is_causal=True, implementation=implementation
    )
    return (out * out_weight).sum() + (value * entropy_weight).sum()

  inputs = [q, k, v, t]
  with jax.enable_x64():
    gradients = jax.grad(ours, argnums=(0, 1, 2, 3))(*map(jnp.asarray, inputs))
  for i, gradient in enumerate(gradients):
    direction = rng.normal(size=inputs[i].shape)
    step = 1e-6 * direction
    up = oracle(*[x + step if j == i else x for j, x in enumerate(inputs)])
    down = oracle(*[x - step if j == i else x for j, x in enumerate(inputs)])
    np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), (up - down) / 2e-6, rtol=1e-6)


def test_a_query_does_not_depend_on_later_keys():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(2)))
  for t in range(7):
    pick = lambda k, v, t=t: sum(x[:, t].sum() for x in entropy_attn.dot_product_attention(q, k, v, is_causal=True))
    dk, dv = jax.grad(pick, argnums=(0, 1))(k, v)
    for gradient in (dk, dv):
      np.testing.assert_array_equal(gradient[:, t + 1 :], 0)
    assert np.any(dv[:, : t + 1] != 0)
    assert np.any(dk[:, : t + 1] != 0) == (t > 0)  # one key has all the weight, whatever it is


def test_first_row_has_zero_entropy_and_bfloat16_keeps_float32_statistics():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random_qkv(np.random.default_rng(3)))
  out, value = entropy_attn.dot_product_attention(q, k, v, is_causal=True)
  assert out.dtype == jnp.bfloat16
  assert value.dtype == jnp.float32
  np.testing.assert_array_equal(value[:, 0], 0)
  _, wide = entropy_attn.dot_product_attention(*(x.astype(jnp.float32) for x in (q, k, v)), is_causal=True)
  np.testing.assert_allclose(value, wide, atol=1e-5)  # bf16 products are exact in float32


def test_temperature_per_head_broadcasts_and_divides_the_logits():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(4)))
  per_head = jnp.array([0.1, 0.5, 1.0, 4.0])
  ours = entropy_attn.dot_product_attention(q, k, v, temperature=per_head)
  scaled = entropy_attn.dot_product_attention(q / per_head[:, None], k, v)
  for a, b in zip(ours, scaled, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert np.all(np.diff(ours[1].mean(axis=(0, 1))) > 0)  # a higher temperature diffuses


def test_misfits_raise():
  x = jnp.zeros((1, 4, 6, 8))
  with pytest.raises(ValueError, match="implementation='flash' is not one of auto, reference"):
    entropy_attn.dot_product_attention(x, x, x, implementation="flash")
  with pytest.raises(ValueError, match="6 query heads are not divisible by 4 key heads"):
    entropy_attn.dot_product_attention(x, x[:, :, :4], x[:, :, :4])
  with pytest.raises(ValueError, match="do not fit together"):
    entropy_attn.dot_product_attention(x, x[..., :4], x)
  with pytest.raises(ValueError, match="mask float32.* is not boolean and broadcastable to .1, 6, 4, 4."):
    entropy_attn.dot_product_attention(x, x, x, mask=jnp.ones((4, 4)))
  with pytest.raises(ValueError, match="mask bool.3, 4."):
    entropy_attn.dot_product_attention(x, x, x, mask=jnp.ones((3, 4), bool))
  with pytest.raises(ValueError, match="needs four axes"):
    entropy_attn.dot_product_attention(x, x[0], x[0])


def both(implementation, q, k, v, **options):
  """(out, entropy) and the gradients of a random functional of them."""

  def run(q, k, v):
    out, entropy = entropy_attn.dot_product_attention(q, k, v, implementation=implementation, **options)
    weights = (jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in (out, entropy))
    return sum(jnp.sum(x * w) for x, w in zip((out, entropy), weights, strict=True)), (out, entropy)

  grads, outs = jax.grad(run, argnums=(0, 1, 2), has_aux=True)(q, k, v)
  return *outs, *grads


MASK_SHAPES = [(2, 4, 150, 150), (1, 1, 150, 150), (2, 1, 150, 150), (1, 4, 150, 150), (2, 4, 1, 150), (2, 1, 1, 150)]
MASK_SHAPES += [(1, 1, 150, 1), (150, 150), (4, 1, 150)]


@pytest.mark.parametrize("shape", MASK_SHAPES)
@pytest.mark.parametrize("causal", [True, False])
def test_blockwise_takes_every_mask_that_broadcasts(shape, causal):
  rng = np.random.default_rng(5)
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(rng, T=150, G=2))
  options = {"mask": jnp.asarray(rng.random(shape) < 0.6), "is_causal": causal}
  assert_close(both("blockwise", q, k, v, **options), both("reference", q, k, v, **options), atol=2e-5)


def test_values_of_another_width_and_queries_of_another_length():
  rng = np.random.default_rng(6)
  q, k, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 5, 4, 8), (1, 140, 2, 8), (1, 140, 2, 3)))
  assert_close(both("blockwise", q, k, v), both("reference", q, k, v), atol=2e-5)


def test_arrays_without_a_batch_are_as_a_batch_of_one():
  q, k, v = (jnp.asarray(x[0], jnp.float32) for x in random_qkv(np.random.default_rng(7), G=2))
  out, entropy = entropy_attn.dot_product_attention(q, k, v, is_causal=True)
  batched = entropy_attn.dot_product_attention(q[None], k[None], v[None], is_causal=True)
  assert_close((out, entropy), (batched[0][0], batched[1][0]), atol=2e-5)
  np.testing.assert_allclose(out, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=1e-5)


def test_it_can_be_mapped_over():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(8)))
  mapped = jax.vmap(lambda *x: entropy_attn.dot_product_attention(*x, implementation="blockwise"))(q, k, v)
  assert_close(mapped, entropy_attn.dot_product_attention(q, k, v, implementation="reference"), atol=2e-5)


@pytest.mark.parametrize("implementation", ["gpu", "tpu"])
@pytest.mark.parametrize(
  "reason,dtype,options",
  [
    ("operands of float16, float32", jnp.float16, {}),
    ("a mask of shape .1, 1, 9, 9., with an axis of heads or queries", jnp.float32, {"mask": np.tri(9, dtype=bool)}),
    ("is for .PUs; here 'blockwise' runs", jnp.float32, {}),
  ],
)
def test_what_a_kernel_cannot_take_goes_to_blockwise_and_is_said_once(implementation, reason, dtype, options):
  fused._warn_once.cache_clear()
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(9), T=9))
  q = q.astype(dtype)
  with pytest.warns(UserWarning, match=reason) as said:
    first = entropy_attn.dot_product_attention(q, k, v, implementation=implementation, **options)
    entropy_attn.dot_product_attention(q, k, v, implementation=implementation, **options)
  assert len(said) == 1
  assert_close(first, entropy_attn.dot_product_attention(q, k, v, implementation="blockwise", **options), atol=2e-5)


def test_auto_here_is_blockwise_and_says_nothing(recwarn):
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(10)))
  text = jax.jit(entropy_attn.dot_product_attention).lower(q, k, v).as_text()
  assert text == jax.jit(lambda query, key, value: entropy_attn.dot_product_attention(
    query, key, value, implementation="blockwise"
  )).lower(q, k, v).as_text().replace("jit__lambda", "jit_dot_product_attention")  # fmt: skip
  assert not recwarn.list


@pytest.mark.parametrize("implementation", ["blockwise", pytest.param("gpu", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:attention")
def test_forward_mode_and_second_derivatives_equal_those_of_the_reference(implementation):
  keys = jax.random.split(jax.random.key(0), 6)
  x, direction = (tuple(jax.random.normal(key, (1, 9, 2, 4)) for key in ks) for ks in (keys[:3], keys[3:]))

  def along(kind):
    def loss(q, k, v):
      out, entropy = entropy_attn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)
      return jnp.sum(jnp.sin(out)) + jnp.sum(entropy**2)

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    return jax.jit(lambda x: (jax.jvp(loss, x, direction), jax.jvp(lambda *x: gradient(*x), x, direction)))(x)

  for a, b in zip(*map(jax.tree.leaves, (along(implementation), along("reference"))), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
  "T,cut",
  [
    pytest.param(41, {"_TURNED": 0}, marks=pytest.mark.slow),
    (43, {"_TURNED": 0, "_ROWS": 8, "_SPANS_OF_MANY": 3, "_MANY": 6}),
  ],
)
def test_however_its_work_is_cut_it_gives_the_same(T, cut, monkeypatch):
  """As long sequences are cut, which no test here is; no other test has these lengths, whose programs would be kept."""
  for name, number in cut.items():
    monkeypatch.setattr(plan, name, number)
  keys = jax.random.split(jax.random.key(2), 6)
  x, direction = (
    tuple(jax.random.normal(key, (2, T, heads, 4)) for key, heads in zip(ks, (4, 2, 2), strict=True))
    for ks in (keys[:3], keys[3:])
  )
  its = plan.Plan.of(*x[:2], True, None)
  assert its.turned and len(its.spans) == (3 if "_MANY" in cut else 2)

  def along(kind):
    def loss(q, k, v):
      out, entropy = entropy_attn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)
      return jnp.sum(jnp.sin(out)) + jnp.sum(entropy**2)

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    return jax.jit(lambda x: jax.jvp(lambda *x: gradient(*x), x, direction))(x)

  for a, b in zip(*map(jax.tree.leaves, (along("blockwise"), along("reference"))), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["reverse over reverse", "reverse over forward", "vmap", "checkpoint in scan"])
@pytest.mark.parametrize("implementation", ["blockwise", "gpu", "tpu"])
@pytest.mark.filterwarnings("ignore:attention")
def test_transformations_compose(implementation, order):
  x = tuple(jax.random.normal(key, (1, 9, 2, 4)) for key in jax.random.split(jax.random.key(1), 3))

  def found(kind):
    def loss(q, k, v):
      out, entropy = entropy_attn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)
      return jnp.sum(jnp.sin(out)) + jnp.sum(entropy**2)

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    inner = lambda a, b: sum(jnp.sum(m * jnp.cos(n)) for m, n in zip(a, b, strict=True))
    body = jax.checkpoint(lambda c, _: (c + gradient(c, *x[1:])[0], None))
    return {
      "reverse over reverse": lambda: jax.grad(lambda *y: inner(gradient(*y), x), argnums=(0, 1, 2))(*x),
      "reverse over forward": lambda: jax.grad(lambda *y: jax.jvp(loss, y, x)[1], argnums=(0, 1, 2))(*x),
      "vmap": lambda: jax.vmap(gradient, in_axes=(0, None, None))(jnp.stack([x[0], 2 * x[0]]), *x[1:]),
      "checkpoint in scan": lambda: jax.grad(lambda q: jnp.sum(jax.lax.scan(body, q, None, length=2)[0]))(x[0]),
    }[order]()

  for a, b in zip(*map(jax.tree.leaves, (found(implementation), found("reference"))), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_without_jit_a_second_call_compiles_nothing():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(13), T=11))
  gradient = jax.grad(lambda q: sum(map(jnp.sum, entropy_attn.dot_product_attention(q, k, v, is_causal=True))))
  compiled, other = [], 2 * gradient(q)
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
  gradient(other)
  assert not [name for name in compiled if "backend_compile" in name]
  jax.jit(lambda x: x + 13)(q)
  assert [name for name in compiled if "backend_compile" in name]  # the listener hears
