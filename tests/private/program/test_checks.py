"""The one check of a whole inference counts what those of the layers count."""

import numpy as np

from entropy_attn.private.program import operations, softmax
from entropy_attn.private.program.checks import CountAtOnce
from entropy_attn.private.program.ops import Plain


def test_one_check_counts_the_rows_that_each_layers_own_counts():
  rng = np.random.default_rng(0)
  tops = (1.0, 1.2)
  sums = [rng.uniform(-1, 12, (2, 5)).astype(np.float32), np.float32([[1e7], [-1e7]])]
  y_NxD = np.float32([[1, 1], [0.1, 0.1], [9, 9], [1, -1]])
  counted = [softmax.CountImpossible(7, top)(Plain(None), one) for top, one in zip(tops, sums, strict=True)]
  final = operations.CountUnnormalised()(Plain(None), y_NxD)
  assert 0 < counted[0] < 10 and counted[1] == 2 and final == 2
  assert CountAtOnce((7, 7), tops)(Plain(None), y_NxD, *sums) == sum(counted) + final
