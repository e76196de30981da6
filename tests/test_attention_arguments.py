"""What attention takes beside queries, keys and values: as `jax.nn.dot_product_attention` has it, and the formulas."""

from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import random_qkv
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_close

import entropy_attn


def arguments(seed, B, T, S, H, G, *, bias, masked, lengths, causal, window):
  """q, k, v and what `jax.nn.dot_product_attention` takes besides."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  options = {"is_causal": causal, "local_window_size": window}
  if bias is not None:
    options["bias"] = normal(*(n if whole else 1 for n, whole in zip((B, H, T, S), bias, strict=True)))
  if masked is not None:
    shape = [n if whole else 1 for n, whole in zip((B, H, T, S), masked, strict=True)]
    options["mask"] = jnp.asarray(rng.random(shape) < 0.8)
  if lengths:
    options["query_seq_lengths"] = jnp.asarray(rng.integers(1, T + 1, B), jnp.int32)
    options["key_value_seq_lengths"] = jnp.asarray(rng.integers(1, S + 1, B), jnp.int32)
  return (normal(B, T, H, 8), normal(B, S, G, 8), normal(B, S, G, 8)), options


def sees_a_key(B, H, T, S, options):
  """[B, T, H], from the arguments' meanings."""
  i, j = np.arange(T)[:, None], np.arange(S)[None]
  seen = np.ones((B, H, T, S), bool)
  if options["is_causal"]:
    seen &= j <= i
  if options["local_window_size"] is not None:
    left, right = np.broadcast_to(options["local_window_size"], 2)
    seen &= (j >= i - left) & (j <= i + right)
  if "mask" in options:
    seen &= np.asarray(options["mask"])
  if "query_seq_lengths" in options:
    seen &= i < np.asarray(options["query_seq_lengths"])[:, None, None, None]
    seen &= j < np.asarray(options["key_value_seq_lengths"])[:, None, None, None]
  return seen.any(-1).swapaxes(1, 2)


AXES = st.none() | st.tuples(st.booleans(), st.booleans(), st.booleans(), st.just(True))
ARGUMENTS = {
  "shape": st.sampled_from([(1, 5, 5, 2, 1), (2, 9, 12, 4, 2), (2, 12, 9, 2, 2), (1, 200, 200, 2, 1)]),
  "bias": AXES, "masked": AXES, "lengths": st.booleans(), "causal": st.booleans(),
  "window": st.none() | st.integers(0, 6) | st.tuples(st.integers(0, 12), st.integers(0, 12)),
  "seed": st.integers(0, 2**31),
}  # fmt: skip


def assert_as_jax_nn(implementation, shape, seed, **kinds):
  """out, the log-sum-exp and all gradients, of the rows that may attend to something."""
  B, T, S, H, _ = shape
  qkv, options = arguments(seed, *shape, **kinds)
  some = sees_a_key(B, H, T, S, options)
  weight = jnp.asarray(some[..., None] * np.random.default_rng(seed).normal(size=(B, T, H, 8)), jnp.float32)
  bias = options.pop("bias", jnp.zeros((1, 1, 1, 1)))

  def run(attend):
    def loss(q, k, v, bias):
      out, *_, lse = attend(q, k, v, bias, return_residual=True, **options)
      return jnp.sum(out * weight), (jnp.where(some[..., None], out, 0), jnp.where(some, lse, 0))

    grads, values = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*qkv, bias)
    return *values, *grads

  ours = run(lambda *x, **o: entropy_attn.dot_product_attention(*x, implementation=implementation, **o))
  assert_close(ours, run(jax.nn.dot_product_attention), atol=2e-5)
  out, entropy, lse = entropy_attn.dot_product_attention(
    *qkv, bias, implementation=implementation, return_residual=True, **options
  )
  assert np.all(out[~some] == 0) and np.all(entropy[~some] == 0) and np.all(np.isneginf(lse[~some]))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@settings(deadline=None, max_examples=25)
@given(**ARGUMENTS)
def test_every_argument_means_what_it_means_in_jax_nn(implementation, **kinds):
  assert_as_jax_nn(implementation, **kinds)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_all_arguments_at_once_mean_what_they_mean_in_jax_nn(implementation):
  whole = (False, True, True, True)
  kinds = {"bias": whole, "masked": (True, False, True, True), "lengths": True, "causal": True, "window": (7, 2)}
  assert_as_jax_nn(implementation, (2, 140, 140, 4, 2), 0, **kinds)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(softcap=st.none() | st.floats(0.5, 20), **ARGUMENTS)
def test_blockwise_equals_the_reference_with_every_argument(softcap, shape, seed, **kinds):
  qkv, options = arguments(seed, *shape, **kinds)
  options["logit_softcap"] = softcap
  bias = options.pop("bias", jnp.zeros((1, 1, 1, 1)))
  t = jnp.linspace(0.3, 2, shape[3])

  def run(implementation):
    def loss(q, k, v, bias, t):
      out, entropy = entropy_attn.dot_product_attention(
        q, k, v, bias, temperature=t, implementation=implementation, **options
      )
      weights = (jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in (out, entropy))
      return sum(jnp.sum(x * w) for x, w in zip((out, entropy), weights, strict=True)), (out, entropy)

    grads, values = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))(*qkv, bias, t)
    return *values, *grads

  assert_close(run("blockwise"), run("reference"), atol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_softcap_bias_and_window_equal_the_formula_in_float64(implementation):
  rng = np.random.default_rng(11)
  q, k, v = random_qkv(rng, B=1, T=9, H=2)
  bias = rng.normal(size=(2, 9, 9))
  bias[:, 3, :2] = -np.inf
  s = 1.5 * np.tanh(np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8) / 1.5) + bias
  ahead = np.arange(9)[None] - np.arange(9)[:, None]
  p = np.where((ahead >= -3) & (ahead <= 1), np.exp(s), 0)
  lse = np.log(p.sum(-1))
  p /= p.sum(-1, keepdims=True)
  with jax.enable_x64():
    found = entropy_attn.dot_product_attention(
      *map(jnp.asarray, (q, k, v, bias)), local_window_size=(3, 1), logit_softcap=1.5, return_residual=True,
      implementation=implementation
    )  # fmt: skip
  entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
  expected = np.einsum("bhts,bshk->bthk", p, v), entropy.swapaxes(1, 2), lse.swapaxes(1, 2)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_window_is_worked_on_alone():
  """No array of the program grows with the square of the length, and flops grow with it as the window says."""
  x = lambda T: jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)

  def program(T, **options):
    loss = lambda q, k, v: sum(map(jnp.sum, entropy_attn.dot_product_attention(q, k, v, is_causal=True, **options)))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x(T), x(T), x(T)).compile()

  short, long = (program(T, local_window_size=(100, 0)).memory_analysis().temp_size_in_bytes for T in (1024, 4096))
  assert long < 4.2 * short
  assert long < program(4096).memory_analysis().temp_size_in_bytes / 2


def test_arguments_that_mean_nothing_raise():
  x = jnp.zeros((1, 4, 2, 8))
  for match, options in (
    ("bias int32.* is not floating", {"bias": jnp.zeros((4, 4), jnp.int32)}),
    ("key_value_seq_lengths float32.1. is not 1 integers", {"key_value_seq_lengths": jnp.ones(1)}),
    ("query_seq_lengths int32.2. is not 1 integers", {"query_seq_lengths": jnp.ones(2, jnp.int32)}),
    ("local_window_size=.-1, 0. is negative", {"local_window_size": (-1, 0)}),
    ("logit_softcap=0 is not above 0", {"logit_softcap": 0}),
    (r"scale \[2\] is neither one number nor broadcastable to \[2, 4\]", {"scale": jnp.ones(2)}),
    (r"temperature \[4\] is broadcastable neither to \[2\] heads nor to \[2, 4\]", {"temperature": jnp.ones(4)}),
    (r"temperature \[1, 2, 4\] is broadcastable neither", {"temperature": jnp.ones((1, 2, 4))}),
  ):
    with pytest.raises(ValueError, match=match):
      entropy_attn.dot_product_attention(x, x, x, **options)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("temperature", [1e-37, 1e-40, 0.0])
def test_a_temperature_of_nothing_is_the_largest_logit_alone(implementation, temperature):
  q, k, v = (jnp.asarray(x, jnp.float32) for x in random_qkv(np.random.default_rng(12)))
  attend = lambda t: entropy_attn.dot_product_attention(
    q, k, v, temperature=t, is_causal=True, implementation=implementation
  )
  (out, entropy), vjp = jax.vjp(jax.jit(attend), jnp.float32(temperature))
  logits = np.where(np.tri(7, dtype=bool), np.einsum("bthk,bshk->bhts", q, k), -np.inf)
  chosen = np.take_along_axis(np.asarray(v).swapaxes(1, 2), logits.argmax(-1)[..., None], axis=2).swapaxes(1, 2)
  np.testing.assert_allclose(out, chosen, rtol=1e-6)
  assert np.all(entropy == 0)
  assert vjp((out, entropy + 1))[0] == 0


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 1), (2, 4)])
def test_a_scale_is_of_all_or_of_each_head_and_query(shape):
  q, k, v = (jnp.asarray(x) for x in np.random.default_rng(13).normal(size=(3, 1, 4, 2, 8)).astype(np.float32))
  scale = jnp.linspace(0.1, 1, int(np.prod(shape))).reshape(shape)
  scale_HxT = jnp.broadcast_to(scale, (2, 4))
  found = entropy_attn.dot_product_attention(q, k, v, scale=scale)
  expected = entropy_attn.dot_product_attention(q * scale_HxT.T[None, :, :, None], k, v, scale=1)
  np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
