"""What is made of the last row of logits before anything of it is opened: the likeliest token, or the K likeliest.

A round takes as long as a megabyte or so on a slow line. So what few numbers are left is compared all with all at once,
and only many in pairs, level by level.

Letters in array names: V vocabulary, C numbers that are compared, K that are chosen, G groups, S members of a group.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from entropy_attn.private.program.types import Operation

_PAIRED = 1024  # of more numbers than these neighbours are compared, of fewer all with all in two steps
_FEW = 256  # numbers of which all are compared with all to choose the K largest
_CHOSEN = 65_536  # numbers of which a bit chooses each for fewer bytes than a product of matrices takes
_LOWEST = -(2.0**14)  # below any logit that the narrow ring holds with room to spare


@dataclasses.dataclass(frozen=True)
class LastLogits(Operation):
  """The last row of logits [N, V], as [V].

  Attributes:
    narrow: whether a narrow ring reads the result.
  """

  narrow: bool

  def __call__(self, ops, logits_NxV):
    return ops.halve(logits_NxV[-1], 0, self.narrow)


@dataclasses.dataclass(frozen=True)
class Likeliest(Operation):
  """The index [1], int32, of the largest of some numbers [V]; of equal ones any one."""

  def __call__(self, ops, x_V):
    ids_V = np.arange(len(x_V), dtype=np.int32)
    while len(x_V) > _PAIRED:
      half, odd = len(x_V) // 2, len(x_V) % 2
      first = x_V[:half] >= x_V[half : 2 * half]
      winner = lambda y, half=half, first=first: jnp.where(first, y[:half], y[half : 2 * half])
      x_V, ids_V = (jnp.concatenate([winner(y), y[-odd:]]) if odd else winner(y) for y in (x_V, ids_V))
    groups = math.isqrt(len(x_V))
    x_GxS, ids_GxS = _grouped(x_V, groups, _LOWEST), _grouped(ids_V, groups, 0)
    first_GxS = _ranks(x_GxS) == 0
    of_first = lambda y_GxS: jnp.sum(jnp.where(first_GxS, y_GxS, jnp.zeros_like(y_GxS)), axis=1)
    x_G, ids_G = of_first(x_GxS), of_first(ids_GxS)
    return jnp.sum(jnp.where(_ranks(x_G) == 0, ids_G, jnp.zeros_like(ids_G)), keepdims=True)


@dataclasses.dataclass(frozen=True)
class Top(Operation):
  """The K largest of the last row of logits [N, V], from the largest, and their indices as numbers: [2, K]."""

  k: int

  def __call__(self, ops, logits_NxV):
    return _top(logits_NxV[-1], self.k).T


def _top(x_C, k: int, payload_CxW=None):
  """The K largest of some numbers, from the largest, their indices as numbers, and their payload: [K, 2 + W].

  Whoever is among the K largest is in one of the K groups with the largest maxima: only these are looked into.
  """
  C = len(x_C)
  index_C = jnp.arange(C, dtype=x_C.dtype)
  if C > _FEW:
    groups = -(-C // min(2 ** int(math.log2(_FEW // k)), -(-C // _FEW)))
    x_GxS = _grouped(x_C, groups, _LOWEST)
    payload = [x_GxS] if payload_CxW is None else [x_GxS, _grouped(payload_CxW, groups, 0).reshape(groups, -1)]
    chosen = _top(_maxima(x_GxS), k, jnp.concatenate(payload, axis=1))
    S = x_GxS.shape[1]
    x_C = chosen[:, 2 : 2 + S].reshape(-1)
    index_C = (chosen[:, 1:2] + groups * np.arange(S, dtype=np.float32)).reshape(-1)
    payload_CxW = None if payload_CxW is None else chosen[:, 2 + S :].reshape(k * S, -1)
  parts = [x_C[:, None], index_C[:, None]] + ([] if payload_CxW is None else [payload_CxW])
  values_CxW = jnp.concatenate(parts, axis=1)
  hot_KxC = _ranks(x_C) == np.arange(k, dtype=np.int32)[:, None]
  if k * values_CxW.size <= _CHOSEN:
    return jnp.sum(jnp.where(hot_KxC[:, :, None], values_CxW, jnp.zeros_like(values_CxW)), axis=1)
  return hot_KxC.astype(jnp.int32) @ values_CxW


def _maxima(x_GxS):
  while x_GxS.shape[1] > 1:
    half = x_GxS.shape[1] // 2
    x_GxS = jnp.concatenate([jnp.maximum(x_GxS[:, :half], x_GxS[:, half : 2 * half]), x_GxS[:, 2 * half :]], axis=1)
  return x_GxS[:, 0]


def _ranks(x):
  """How many are larger than each of [..., C], int32; of equal numbers the first counts as larger."""
  C = x.shape[-1]
  if C == 1:
    return jnp.zeros(x.shape, jnp.int32)
  left, right = np.triu_indices(C, 1)
  first = (x[..., left] >= x[..., right]).astype(jnp.int32)
  pair = np.zeros((C, C), np.int32)
  pair[left, right] = pair[right, left] = np.arange(len(left))
  above = np.tril(np.ones((C, C), np.int32), -1)  # where the other one comes first
  below = above.T
  return jnp.sum(first[..., pair] * (above - below), axis=-1) + below.sum(axis=1)


def _grouped(x, groups: int, filling):
  """[C, ...] in G groups [G, S, ...], neighbours in different ones; what is missing is filled up."""
  members = -(-len(x) // groups)
  missing = groups * members - len(x)
  x = jnp.concatenate([x, jnp.full((missing, *x.shape[1:]), filling, x.dtype)]) if missing else x
  return jnp.swapaxes(x.reshape(members, groups, *x.shape[1:]), 0, 1)
