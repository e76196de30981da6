"""Products of several heads at once, and scores in causal blocks: the same numbers, and fewer bytes."""

import numpy as np
import pytest

from entropy_attn.private.price import protocols
from entropy_attn.private.program import joined, products
from entropy_attn.private.program.joined import Joining
from entropy_attn.private.program.ops import Plain

SCORES = products.Scores(triangle=True, join=joined.CHEAPEST, blocks=True)


def matrices(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("joining", [Joining(group, diagonal) for group in (1, 2, 3, 6) for diagonal in (True, False)])
def test_joined_products_are_those_of_each_head(joining):
  left, right = matrices((6, 3, 4), (6, 4, 5))
  np.testing.assert_allclose(joined.product(left, right, joining), left @ right, atol=1e-5)


@pytest.mark.parametrize(
  "H,N,C,L", [(12, 8, 64, 8), (12, 8, 8, 64), (12, 32, 64, 128), (12, 64, 512, 64), (12, 1, 64, 300), (4, 5, 32, 7)]
)
def test_what_is_weighed_is_what_is_measured(H, N, C, L):
  """The constants of joined are those of the cost model, so that the cheapest joining is so by it, too."""
  wide, weighed = protocols.of_setting("cheap")[64], {}
  for joining in {joined.cheapest(H, N, C, L), joined.APART, Joining(H, True), Joining(H, False)}:
    G, diagonal = joining
    shape = (G * N, G * C, L) if diagonal else (G * N, C, G * L)
    cost = wide.matrix_product(*shape, directions=2, cut=False) * (H // G)
    weighed[joining] = cost.bytes / 1e6 + cost.seconds + 0.05 * cost.rounds
    assert joined.price(joining, H, N, C, L) == pytest.approx(weighed[joining], rel=0.02, abs=0.05)
  assert weighed[joined.cheapest(H, N, C, L)] <= 1.02 * min(weighed.values())


def test_few_queries_join_all_heads_and_many_none():
  groups = [joined.cheapest(12, N, 64, N).group for N in (1, 8, 32, 64, 128)]
  assert groups == [12, 12, 12, 2, 1]
  assert joined.cheapest(12, 128, 128, 64) == joined.APART


@pytest.mark.parametrize("ends", [(1, 7), (3, 5, 7), (7,)])
@pytest.mark.parametrize("past", [0, 4])
def test_scores_in_blocks_are_those_of_the_whole(monkeypatch, ends, past):
  q, k = matrices((2, 7, 3), (2, past + 7, 3), seed=past)
  whole = SCORES(Plain(None), q, k)
  monkeypatch.setattr(products.Scores, "_ends", lambda self, *sizes: ends)
  np.testing.assert_allclose(SCORES(Plain(None), q, k), whole, atol=1e-6)


def test_only_long_prompts_are_cut_into_blocks():
  ends = lambda N, M: SCORES._ends(12, N, 64, M)
  assert [len(ends(N, N)) for N in (8, 64, 512)] == [1, 1, 4]
  assert ends(1, 100) == (1,) and ends(512, 512)[-1] == 512
