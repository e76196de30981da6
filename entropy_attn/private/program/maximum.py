"""The maxima of rows of unequal lengths, by a tournament.

Letters in array names: H heads, E entries of all rows, one row behind the other, N rows, G groups of entries.
"""

import jax.numpy as jnp
import numpy as np

_PAIRS = ((0, 0, 0, 1, 1, 2), (1, 2, 3, 2, 3, 3))  # all of four


def segment_max(s_HxE, lengths_N: np.ndarray, fours: bool):
  """The maximum [H, N] of each of N neighbouring segments.

  Args:
    fours: four entries meet at once, by all six comparisons: half the steps, twice the comparisons. Else two do: E − N
      comparisons a head.
  """
  width, lengths = 4 if fours else 2, np.array(lengths_N)
  while lengths.max() > 1:
    width = min(width, 2 if lengths.max() == 2 else 4)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    groups, odd = -(-lengths // width), np.flatnonzero(lengths % width == 1)
    groups[odd] -= 1  # one that is alone goes on as it is
    segment = np.repeat(np.arange(len(lengths)), groups)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(groups) - groups, groups)
    # A group that is short has its last entry more than once.
    members = np.minimum(width * within + np.arange(width)[:, None], lengths[segment] - 1) + starts[segment]
    winners = _largest(s_HxE, members)
    pool = jnp.concatenate([winners, s_HxE[:, starts[odd] + lengths[odd] - 1]], axis=1) if len(odd) else winners
    # Back to the order of the segments: the winners of each, then its odd one out.
    s_HxE = pool[:, np.argsort(np.concatenate([segment, odd]), kind="stable")]
    lengths = groups + (lengths % width == 1)
  return s_HxE


def _largest(s_HxE, members: np.ndarray):
  """The largest [H, G] of each group of two or four entries, [2 or 4, G]."""
  if len(members) == 2:
    return jnp.maximum(s_HxE[:, members[0]], s_HxE[:, members[1]])
  x_4xHxG = jnp.moveaxis(s_HxE[:, members], 1, 0)
  first, second = map(np.array, _PAIRS)
  ab, ac, ad, bc, bd, cd = x_4xHxG[first] > x_4xHxG[second]
  ends_2xHxG = jnp.where(jnp.stack([ab, cd]), x_4xHxG[np.array([0, 2])], x_4xHxG[np.array([1, 3])])
  # Whether the winner of a and b beats that of c and d is known already: chosen by bits, which cost next to nothing.
  beat_d, beat_c = jnp.stack([ad, bd]), jnp.stack([ac, bc])
  of_a, of_b = beat_d ^ (cd & (beat_c ^ beat_d))
  return jnp.where(of_b ^ (ab & (of_a ^ of_b)), ends_2xHxG[0], ends_2xHxG[1])
