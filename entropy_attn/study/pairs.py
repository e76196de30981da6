"""Whether one run of a study is better than another, seed by seed: the paired t-test."""

from collections.abc import Mapping, Sequence
import math

from scipy import stats

LEAST = 3  # seeds, to test at all


def compare(rows: Sequence[Mapping], pairs: Sequence[tuple[str, str]]) -> list[dict]:
  """Each pair of runs over the seeds that both have.

  Args:
    rows: of `table.collect`.
    pairs: (a, b), names of rows.

  Returns:
    For each pair a, b, seeds, differences (a's perplexity less b's, one a seed), mean, p (two-sided, of the paired
    t-test; None where there is none) and reason (why there is none).
  """
  by_name = {row["name"]: row for row in rows}
  return [_compare(by_name[a], by_name[b]) for a, b in pairs]


def _compare(a: Mapping, b: Mapping) -> dict:
  of = [dict(zip(row["seeds"], row["perplexities"], strict=True)) for row in (a, b)]
  seeds = [seed for seed in a["seeds"] if all(found.get(seed) is not None for found in of)]
  left, right = ([found[seed] for seed in seeds] for found in of)
  differences = [x - y for x, y in zip(left, right, strict=True)]
  p, reason = None, None
  if len(seeds) < LEAST:
    reason = f"{len(seeds)} common seed{'s' * (len(seeds) != 1)}: a test needs {LEAST}"
  elif len(set(differences)) == 1:
    reason = "all differences are equal: their spread is zero"
  else:
    p = float(stats.ttest_rel(left, right).pvalue)
    p, reason = (p, None) if math.isfinite(p) else (None, "the test gave no number")
  mean = sum(differences) / len(differences) if differences else None
  return {
    "a": a["name"], "b": b["name"], "seeds": seeds, "differences": differences, "mean": mean, "p": p, "reason": reason,
  }  # fmt: skip
