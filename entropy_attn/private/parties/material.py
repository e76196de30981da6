"""What two parties make before there is a prompt, so that its products cost next to nothing after.

Of x W with the server's matrix: the client draws r, and both compute shares of r W by the engine. Later the client
sends its share of x less r, and the server multiplies the sum with its own share in the clear: (x − r) W + r W. Of x y,
both secret: random masks a and b of which each party has a share, and shares of a b. Later both open x − a and y − b,
and x y = (x − a)(y − b) + (x − a) b + a (y − b) + a b.

What is sent is uniformly random, as with a one-time pad; so each mask must be used once.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import secrets

import numpy as np

from entropy_attn.private.program.products import CrossTerms
from entropy_attn.private.program.types import SecretProduct

_LAST_BITS = 4  # by how much a product of the engine may be wrong


@dataclasses.dataclass(frozen=True)
class Mask:
  """What one party has of a product made ahead: integers of the ring, uint64 or uint32.

  Attributes:
    operands: its shares of the masks. Of a product with the server's matrix: r at the client, nothing at the server.
    product: its share of the masks' product.
  """

  operands: tuple[np.ndarray, ...]
  product: np.ndarray

  def rows(self, rows: slice) -> "Mask":
    """That of some rows, of a product with the server's matrix."""
    return Mask(tuple(operand[rows] for operand in self.operands), self.product[rows])


@dataclasses.dataclass(frozen=True)
class Material:
  """One party's masks for one inference.

  Attributes:
    rows: new tokens that it is for at most.
    masks: by the names of what the products write.
  """

  rows: int
  masks: Mapping[str, Mask]

  def fits(self, products: Mapping[str, tuple[tuple[int, ...], ...]]) -> bool:
    """Whether every product of a program has a mask of its size.

    Args:
      products: see `types.Program`.
    """
    return all(name in self.masks and _fits(self.masks[name], shapes) for name, shapes in products.items())

  @property
  def nbytes(self) -> int:
    """Of all arrays."""
    return sum(array.nbytes for mask in self.masks.values() for array in (*mask.operands, mask.product))


def _fits(mask: Mask, shapes) -> bool:
  sizes = [operand.shape for operand in mask.operands] or [mask.product.shape[:1]]
  return all(
    len(size) <= len(shape) and all(n <= most for n, most in zip(shape, size, strict=False))
    for size, shape in zip(sizes, shapes, strict=False)
  )


def laid_out(cross: CrossTerms, masks: Sequence[np.ndarray], *, server: bool) -> np.ndarray:
  """The numbers [n] that a party puts into `CrossTerms`.

  Args:
    masks: its shares of the masks of x, and of y.
    server: whether it is the server.
  """
  parts = [masks[0]]
  if len(masks) == 2:
    spread = cross.operation.multiply(np.ones_like(masks[0]), masks[1])
    parts = [masks[0], spread] if server else [spread, masks[0]]
  numbers = uniform((cross.length,), 8 * masks[0].itemsize).copy()
  numbers[~cross.witnesses()] = np.concatenate([part.ravel() for part in parts])
  return numbers


def crossed(cross: CrossTerms, masks: Sequence[np.ndarray], share: np.ndarray) -> np.ndarray:
  """A party's share of the masks' product.

  Args:
    masks: see `laid_out`.
    share: of what `CrossTerms` gave, [n].
  """
  terms = share[~cross.witnesses()].reshape(-1, *masks[0].shape)
  total = terms.sum(axis=0, dtype=terms.dtype) if len(masks) == 2 else terms[0] + terms[0]
  return cross.operation.multiply(masks[0], masks[-1]) + total


def right(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
  """Whether opened products are those of the opened numbers, but for their last bits.

  Args:
    mine, theirs: a party's numbers, and its shares of their products.
  """
  (r, c), (s, d) = mine, theirs
  wrong = (r * s - c - d).view(r.dtype.str.replace("u", "i"))
  return bool(np.all(np.abs(wrong) <= _LAST_BITS))


def uniform(shape: Sequence[int], bits: int) -> np.ndarray:
  """Uniform integers, from the system's source."""
  return np.frombuffer(secrets.token_bytes(math.prod(shape) * bits // 8), f"uint{bits}").reshape(shape)


def hidden(operation: SecretProduct, mask: Mask, numbers: list[np.ndarray]) -> tuple[list[np.ndarray], Mask]:
  """This party's shares of x − a, and so on, which it tells the other; and the part of the mask that they take."""
  pairs = list(zip(numbers, mask.operands, strict=True))
  if operation.unpadded(*(x.shape for x in numbers)) is not None:
    return [_padded(x, a.shape) - a for x, a in pairs], mask
  operands = tuple(a[_corner(x.shape)] for x, a in pairs)
  return [x - a for x, a in zip(numbers, operands, strict=True)], Mask(operands, mask.product)


def multiplied(operation: SecretProduct, mask: Mask, opened: list[np.ndarray], shapes, *, first: bool) -> np.ndarray:
  """This party's share of the product of what was masked.

  Args:
    mask: the part that is used, of `hidden`.
    opened: x − a, and so on, of both parties together.
    shapes: of x, and so on, before they were padded.
    first: at one of the two parties.
  """
  d, e = (opened * 2)[:2]
  a, b = (mask.operands * 2)[:2]
  total = operation.multiply(d, b) + operation.multiply(a, e)
  if first:
    total += operation.multiply(d, e)
  shape = operation.unpadded(*shapes) or total.shape
  return total[_corner(shape)] + mask.product[_corner(shape)]


def _padded(x: np.ndarray, shape) -> np.ndarray:
  return np.pad(x, [(0, most - n) for n, most in zip(x.shape, shape, strict=True)])


def _corner(shape) -> tuple[slice, ...]:
  return tuple(slice(n) for n in shape)
