import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from entropy_attn import entropy, published


def naive_entropy(logits):
  """-sum p log p in float64, by the definition."""
  p = jax.nn.softmax(logits, axis=-1)
  return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1)


@settings(deadline=None, max_examples=12)
@given(
  rows=st.sampled_from([1, 3]), keys=st.sampled_from([1, 2, 9]), spread=st.floats(1e-3, 30), seed=st.integers(0, 2**31)
)
def test_value_and_gradient_equal_float64_autodiff_of_the_definition(rows, keys, spread, seed):
  with jax.enable_x64():
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=(rows, keys)) * spread)
    np.testing.assert_allclose(entropy.softmax_with_entropy(logits)[1], naive_entropy(logits), atol=1e-9)
    ours = jax.grad(lambda x: entropy.softmax_with_entropy(x)[1].sum())(logits)
    np.testing.assert_allclose(ours, jax.grad(lambda x: naive_entropy(x).sum())(logits), atol=1e-9)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_one_hot_rows_are_finite_and_exactly_zero_with_finite_gradients(scale):
  logits = jnp.eye(5) * scale
  probabilities, value = entropy.softmax_with_entropy(logits)
  np.testing.assert_allclose(probabilities, np.eye(5), atol=1e-30)
  np.testing.assert_array_equal(value, 0)
  gradient = jax.grad(lambda x: entropy.softmax_with_entropy(x)[1].sum())(logits)
  assert np.all(np.isfinite(gradient))


def test_uniform_rows_reach_log_n_and_a_row_of_one_key_is_zero():
  mask = jnp.tril(jnp.ones((6, 6), bool))
  _, value = entropy.softmax_with_entropy(jnp.full((6, 6), 3.0), mask)
  np.testing.assert_allclose(value, np.log(np.arange(1, 7)), atol=1e-6)
  assert value[0] == 0


def test_fully_masked_rows_are_zero_with_zero_gradient():
  logits, mask = jnp.ones((2, 3)), jnp.array([[True, True, False], [False] * 3])
  probabilities, value = entropy.softmax_with_entropy(logits, mask)
  np.testing.assert_array_equal(probabilities[1], 0)
  assert value[1] == 0
  gradient = jax.grad(lambda x: entropy.softmax_with_entropy(x, mask)[1].sum())(logits)
  np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_logits_are_not_hidden_but_counted(bad):
  logits = jnp.zeros((2, 3, 4, 5)).at[1, 2, 0, 3].set(bad)
  _, value = entropy.softmax_with_entropy(logits)
  assert np.isnan(value[1, 2, 0])
  rows_LxBxTxH = jnp.stack([value, jnp.zeros_like(value)])
  np.testing.assert_array_equal(entropy.nonfinite_rows(rows_LxBxTxH), [1, 0])


def test_published_heads_of_figure_3f_give_the_shares_of_figure_2a():
  heads = np.array(published.FIGURE_3F)
  shares = entropy.head_shares(heads, published.MAX_ENTROPY)
  np.testing.assert_allclose(100 * shares, [32.6, 9.7, 12.5, 45.1], atol=0.06)
  np.testing.assert_allclose(100 * shares, published.FIGURE_2A_SM, atol=0.6)
  assert round(100 * float(shares[-1])) == published.FIGURE_2A_TOP["sm"]
  np.testing.assert_array_equal(entropy.head_shares(heads), shares)  # 3.87 is also the largest of these


def test_shares_bins_are_closed_below_and_the_last_on_both_sides():
  np.testing.assert_allclose(entropy.head_shares(np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])), [0.2, 0.2, 0.2, 0.4])
  np.testing.assert_allclose(entropy.head_shares(np.array([0.999, 1.999, 2.999, 9.0]), 4.0), [0.25] * 4)
  np.testing.assert_allclose(entropy.head_shares(np.array([np.nan, 4.0])), [0, 0, 0, 0.5])
  np.testing.assert_allclose(entropy.head_shares(np.zeros((2, 2))), [1, 0, 0, 0])


def test_head_means_leave_padding_out():
  values = np.random.default_rng(0).random((2, 3, 4, 5))
  np.testing.assert_allclose(entropy.head_means(values), values.mean(axis=(1, 2)), rtol=1e-6)
  padded = np.concatenate([values, np.full((2, 1, 4, 5), np.nan)], axis=1)
  weights = np.array([1.0, 1.0, 1.0, 0.0])
  np.testing.assert_allclose(entropy.head_means(padded, weights), values.mean(axis=(1, 2)), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(shape=st.sampled_from([(1, 1, 2, 1), (3, 2, 6, 4), (2, 4, 5, 3)]), gamma=st.floats(0, 0.6),
       seed=st.integers(0, 2**31))  # fmt: skip
def test_penalty_equals_the_published_formula_in_both_forms(shape, gamma, seed):
  rng = np.random.default_rng(seed)
  L, _, T, H = shape
  values, theta = rng.uniform(0, math.log(T), shape), rng.uniform(0.2, 0.8, (L, H))
  with jax.enable_x64():
    summed = entropy.penalty(jnp.asarray(values), jnp.asarray(theta), gamma=gamma, reduction="per_query_sum")
    mean = entropy.penalty(jnp.asarray(values), jnp.asarray(theta), gamma=gamma, reduction="head_mean")
  np.testing.assert_allclose(summed, oracles.penalty_per_query_sum(values, theta, gamma), rtol=1e-9)
  np.testing.assert_allclose(mean, oracles.penalty_head_mean(values, theta, gamma), rtol=1e-9, atol=1e-15)


def test_uniform_heads_cost_what_the_published_settings_say():
  """Uniform causal heads, theta 0.5, lambda 1e-5: 0.478 nats summed over 128 × 128, 2.1e-5 as Algorithm 1."""
  T = 128
  values = jnp.broadcast_to(jnp.log(jnp.arange(1.0, T + 1))[:, None], (1, 1, T, 1))
  theta = jnp.full((1, 1), 0.5)
  assert 1e-5 * 128 * entropy.penalty(values, theta, gamma=0.2) == pytest.approx(0.478, abs=2e-3)
  assert 1e-5 * entropy.penalty(values, theta, gamma=0.2, reduction="head_mean") == pytest.approx(2.1e-5, abs=1e-6)


def test_weights_of_heads_have_mean_one_and_descending_the_loss_moves_them_to_the_largest_penalty():
  values = jnp.broadcast_to(jnp.array([0.5, 1.2, 2.0]), (2, 4, 8, 3)) * jnp.array([1.0, 0.9]).reshape(2, 1, 1, 1)
  theta, equal = jnp.full((2, 3), 0.5), jnp.zeros((2, 3))
  plain = entropy.penalty(values, theta)
  value, gradient = jax.value_and_grad(lambda s: entropy.penalty(values, theta, strengths_LxH=s))(equal)
  np.testing.assert_allclose(value, plain, rtol=1e-6)
  each = jnp.mean(jnp.where(jnp.abs(values - 0.5 * math.log(8)) > 0.2 * math.log(8), 1, 0), axis=(1, 2))
  assert gradient[0, 2] < 0 and jnp.argmin(gradient) == 2 and each[0, 1] == 0  # the farthest head gains most
  descended = equal - 0.1 * gradient
  weights = entropy.head_weights(descended)
  np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
  assert entropy.penalty(values, theta, strengths_LxH=descended) > plain  # nothing is gained by learning them
  assert weights[0, 1] < 1 < weights[0, 2]


def test_penalty_does_not_depend_on_the_batch():
  values = np.random.default_rng(0).uniform(0, 2, (2, 4, 8, 3)).astype(np.float32)
  theta = np.full((2, 3), 0.5, np.float32)
  for reduction in entropy.REDUCTIONS:
    whole = entropy.penalty(values, theta, reduction=reduction)
    halves = [entropy.penalty(values[:, rows], theta, reduction=reduction) for rows in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-6)


@pytest.mark.parametrize("reduction", entropy.REDUCTIONS)
def test_padding_weighs_nothing_in_the_penalty(reduction):
  """Sequences of their own lengths, padded with NaN, and wholly padded ones cost what each costs alone, on average."""
  rng = np.random.default_rng(0)
  lengths, T = (5, 8, 2), 8
  theta = jnp.asarray(rng.uniform(0.2, 0.8, (2, 3)))
  options = {"reduction": reduction, "ceiling": "causal", "gamma": 0.1}
  alone = [rng.uniform(0, 2, (2, 1, n, 3)) for n in lengths]
  padded = [np.pad(x, [(0, 0), (0, 0), (0, T - x.shape[2]), (0, 0)], constant_values=np.nan) for x in alone]
  values = jnp.asarray(np.concatenate([*padded, np.full((2, 1, T, 3), np.nan)], axis=1))
  weights = jnp.asarray(np.arange(T) < np.array([*lengths, 0])[:, None])
  cost = lambda values: entropy.penalty(values, theta, weights_BxT=weights, **options)
  value, gradient = jax.value_and_grad(cost)(values)
  np.testing.assert_allclose(
    value, np.mean([entropy.penalty(jnp.asarray(x), theta, **options) for x in alone]), rtol=1e-5
  )
  assert np.all(np.where(weights[None, :, :, None], np.isfinite(gradient), gradient == 0))
  whole = jnp.nan_to_num(values, nan=1.0)
  equal = entropy.penalty(whole, theta, weights_BxT=jnp.full((4, 1), 2.0), **options)
  np.testing.assert_allclose(equal, entropy.penalty(whole, theta, **options), rtol=1e-6)
  with pytest.raises(ValueError, match=r"weights_BxT has shape \(4,\), the entropies need \(4, 8\) or \(4, 1\)"):
    entropy.penalty(whole, theta, weights_BxT=jnp.ones(4))


def test_upper_side_spares_low_entropies_and_the_margin_is_free():
  values = jnp.log(4.0) * jnp.array([0.0, 0.45, 0.69, 1.0]).reshape(1, 1, 4, 1)
  theta = jnp.full((1, 1), 0.5)
  both = entropy.penalty(values, theta, gamma=0.2)
  upper = entropy.penalty(values, theta, gamma=0.2, sides="upper")
  np.testing.assert_allclose(both, 2 * (0.5 * np.log(4)) ** 2, rtol=1e-5)
  np.testing.assert_allclose(upper, (0.5 * np.log(4)) ** 2, rtol=1e-5)


def test_causal_ceiling_frees_uniform_heads_at_theta_one():
  T = 16
  values = jnp.broadcast_to(jnp.log(jnp.arange(1.0, T + 1))[:, None], (2, 3, T, 2))
  for reduction in entropy.REDUCTIONS:
    assert entropy.penalty(values, jnp.ones((2, 2)), gamma=0.01, ceiling="causal", reduction=reduction) == 0
    assert entropy.penalty(values, jnp.ones((2, 2)), gamma=0.01, ceiling="log_T", reduction=reduction) > 0


def test_nan_entropies_make_the_penalty_nan():
  values = jnp.ones((1, 1, 4, 2)).at[0, 0, 1, 1].set(jnp.nan)
  for sides in entropy.SIDES:
    assert np.isnan(entropy.penalty(values, jnp.full((1, 2), 0.5), sides=sides))


@pytest.mark.parametrize("field", ["reduction", "sides", "ceiling"])
def test_unknown_choices_name_field_value_and_choices(field):
  with pytest.raises(ValueError, match=f"{field}='sum' is not one of"):
    entropy.penalty(jnp.zeros((1, 1, 2, 1)), jnp.zeros((1, 1)), **{field: "sum"})
