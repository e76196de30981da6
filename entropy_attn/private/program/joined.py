"""Products of every head's matrices, several heads at a time where that packs into fewer ciphertexts.

A product of few rows leaves most of its ciphertexts empty. Several heads fill them, in either of two forms. Diagonal:
their left matrices as the blocks of one that is zero elsewhere, times their right ones upon one another; it gives no
more than is wanted. Across: their left matrices upon one another, times their right ones side by side; each head keeps
its own block of what it gives.

Letters in array names: H heads, G heads of a group, N rows, C summed over, L columns.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from entropy_attn.private.program.packing import ciphertexts

# What is weighed against each other, in MB. As measured (`price`), for both directions: a ciphertext each way, and the
# seconds of a plaintext's product and of a rotation, a second as 1 MB. A round is 0.05 MB.
_QUERY, _ANSWER = 0.370, 0.509
_PIECE, _ROTATION, _ROUND = 0.00069, 0.0029, 0.05


class Joining(NamedTuple):
  """How many heads one product is of, and in which form."""

  group: int
  diagonal: bool


APART = Joining(1, True)
NEVER, ONE_QUERY, CHEAPEST = "never", "one query", "cheapest"  # which heads are joined


def choose(rule: str, H: int, N: int, C: int, L: int, *, one: bool) -> Joining:
  """How products [N, C] × [C, L] of H heads are joined.

  Args:
    rule: not at all, all heads of one query, or as costs least.
    one: whether all heads of one query are joined diagonally.
  """
  if rule == CHEAPEST:
    return cheapest(H, N, C, L)
  return Joining(H, one) if rule == ONE_QUERY and N == 1 else APART


@functools.cache
def cheapest(H: int, N: int, C: int, L: int) -> Joining:
  """The joining of products [N, C] × [C, L] of H heads that costs least; of equal ones that of the fewest heads."""
  groups = [G for G in range(1, H + 1) if H % G == 0]
  choices = [Joining(G, diagonal) for G in groups for diagonal in (True, False)]
  return min(choices, key=lambda joining: price(joining, H, N, C, L))


def price(joining: Joining, H: int, N: int, C: int, L: int) -> float:
  """What the products of all heads weigh, in MB."""
  G, diagonal = joining
  shape = (G * N, G * C, L) if diagonal else (G * N, C, G * L)
  parts = ciphertexts(*shape)
  sent = _QUERY * parts.queries + _ANSWER * parts.answers
  return H // G * (sent + _PIECE * parts.pieces + _ROTATION * parts.rotations + _ROUND)


def product(left_HxNxC, right_HxCxL, joining: Joining):
  """The product [H, N, L] of each head's matrices."""
  (H, N, C), L, (G, diagonal) = left_HxNxC.shape, right_HxCxL.shape[2], joining
  if G == 1:
    return jnp.einsum("HNC,HCL->HNL", left_HxNxC, right_HxCxL)
  if diagonal:
    rows = [jnp.pad(left_HxNxC[g::G], ((0, 0), (0, 0), (g * C, (G - 1 - g) * C))) for g in range(G)]
    out = jnp.concatenate(rows, axis=1) @ right_HxCxL.reshape(H // G, G * C, L)
    return out.reshape(H, N, L)
  across = jnp.swapaxes(right_HxCxL.reshape(H // G, G, C, L), 1, 2).reshape(H // G, C, G * L)
  out = (left_HxNxC.reshape(H // G, G * N, C) @ across).reshape(H // G, G, N, G, L)
  return jnp.stack([out[:, g, :, g] for g in range(G)], axis=1).reshape(H, N, L)
