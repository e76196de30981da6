"""What two parties make before there is a prompt: products with the server's weights cost next to nothing after.

For x W the client draws r, uniform in the ring; both compute shares of r W by the engine. Later the client sends its
share of x less r, which tells nothing (a one-time pad), and the server multiplies the sum with its own share in the
clear: (x − r) W + r W. So r must be used once.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mask:
  """What one party has of a product made ahead; integers of the wide ring, uint64.

  Attributes:
    random: r [rows, K], at the client; None at the server.
    product: this party's share of r W, [rows, L].
  """

  random: np.ndarray | None
  product: np.ndarray

  def part(self, rows: slice) -> "Mask":
    """Some of its rows."""
    return Mask(None if self.random is None else self.random[rows], self.product[rows])


@dataclasses.dataclass(frozen=True)
class Material:
  """One party's masks for inferences to come.

  Attributes:
    rows: new tokens, of all inferences together.
    answers: inferences.
    masks: by the names of what the products write.
  """

  rows: int
  answers: int
  masks: Mapping[str, Mask]

  def fits(self, products: Mapping[str, int]) -> bool:
    """Whether it has a mask for every product of a program.

    Args:
      products: see `types.Program`.
    """
    return all(name in self.masks and rows <= len(self.masks[name].product) for name, rows in products.items())

  def nbytes(self) -> int:
    """Of all arrays."""
    arrays = [a for mask in self.masks.values() for a in (mask.random, mask.product) if a is not None]
    return sum(array.nbytes for array in arrays)
