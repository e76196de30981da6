"""The sampler: what it keeps, by its definition; what it draws, by chi-square; and what it refuses."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from entropy_attn import sampling
from entropy_attn.errors import UserError

# Few distinct values: ties are common, and −inf, which a private client has for what is not revealed.
LOGITS = st.lists(st.sampled_from([-np.inf, -3.0, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12).filter(
  lambda logits: max(logits) > -np.inf
)
K, P = st.integers(0, 14), st.floats(1e-6, 1.0)


def softmax(logits):
  weights = np.exp(np.asarray(logits) - max(logits))
  return weights / weights.sum()


@settings(max_examples=300, deadline=None)
@given(LOGITS, K, P)
def test_what_is_kept_is_the_likeliest_and_no_more_than_needed(logits, top_k, top_p):
  logits = np.array(logits)
  keeps = sampling.kept(logits, top_k, top_p)
  order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))  # of equal ones the first
  count = keeps.sum()
  assert set(np.flatnonzero(keeps)) == set(order[:count])
  among = order[:top_k] if top_k else order
  assert 1 <= count <= len(among)
  masses = softmax(logits[among])
  if top_p == 1:
    assert count == len(among)
  else:
    assert math.fsum(masses[:count]) >= top_p - 1e-12
    assert count == 1 or math.fsum(masses[: count - 1]) < top_p + 1e-12


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.integers(0, 2**32), st.floats(0.05, 20), K, P)
def test_a_token_that_is_drawn_is_kept_and_cuts_that_cut_nothing_change_none(logits, seed, temperature, top_k, top_p):
  draw = lambda **how: sampling.next_token(
    np.array(logits), np.random.default_rng(seed), temperature=temperature, **how
  )
  token = draw(top_k=top_k, top_p=top_p)
  assert sampling.kept((np.array(logits) - max(logits)) / temperature, top_k, top_p)[token]
  assert logits[token] > -np.inf
  plain = draw()
  assert draw(top_k=len(logits)) == draw(top_k=0, top_p=1.0) == plain
  # What would not have been drawn may as well be missing, as for a client to whom the rest is not revealed.
  revealed = np.full(len(logits), -np.inf)
  revealed[[plain, token]] = np.array(logits)[[plain, token]]
  assert sampling.next_token(revealed, np.random.default_rng(seed), temperature=temperature) == plain


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 4, 1.0), (1.0, 0, 0.8), (1.5, 5, 0.7)]
)
def test_tokens_are_drawn_as_often_as_their_probabilities_say(temperature, top_k, top_p):
  logits = np.array([0.3, -1.0, 2.0, 1.5, -np.inf, 0.3, -2.0, 1.0])
  rng, draws = np.random.default_rng(0), 4000
  drawn = [sampling.next_token(logits, rng, temperature=temperature, top_k=top_k, top_p=top_p) for _ in range(draws)]
  probabilities = softmax(logits / temperature)
  probabilities[~sampling.kept(logits / temperature, top_k, top_p)] = 0
  probabilities /= probabilities.sum()
  counts = np.bincount(drawn, minlength=len(logits))
  possible = probabilities > 0
  assert counts[~possible].sum() == 0
  assert stats.chisquare(counts[possible], draws * probabilities[possible]).pvalue > 1e-3
  flat = np.full(possible.sum(), draws / possible.sum())
  assert stats.chisquare(counts[possible], flat).pvalue < 1e-6  # the test would notice


def test_a_temperature_of_zero_takes_the_first_of_the_likeliest_and_no_random_numbers():
  rng = np.random.default_rng(3)
  assert sampling.next_token(np.float32([1, 3, 3, 2]), rng) == 1
  assert rng.random() == np.random.default_rng(3).random()
  for temperature in (1e-300, 1e-9):  # the limit
    assert sampling.next_token(np.array([1.0, 3.0, 2.0]), rng, temperature=temperature) == 1
  far = [sampling.next_token(np.array([1.0, 3.0, 2.0]), rng, temperature=1e300) for _ in range(300)]
  assert min(np.bincount(far, minlength=3)) > 60


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad, temperature):
  for logits in ([0.0, bad], [-np.inf, -np.inf]):
    with pytest.raises(ValueError, match="not finite"):
      sampling.next_token(np.array(logits), np.random.default_rng(0), temperature=temperature)


def test_prompts_that_no_model_reads_are_one_line():
  sampling.check_prompt([0, 9], 10)
  for ids, message in (([], "empty"), ([10], "token 10 is out of range: the model knows 0 to 9"), ([-1], "token -1")):
    with pytest.raises(UserError, match=message):
      sampling.check_prompt(ids, 10)
