"""How blockwise attention cuts its work, and the arrays with it.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; C chunks of N pairs of a sequence and a key head; Q query rows of a block, M = R Q, W its keys.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

_ROWS = 128  # query rows of a block
_SPANS = 8  # the blocks are cut into at most so many spans, each with its own range of keys: half the work if causal
# Logits that are worked on at once, measured on CPUs: few enough for the caches, but where a sequence is short enough
# for its chunks to cost more than they save. Elsewhere they should be many enough to fill the machine.
_LOGITS_CPU, _LOGITS_CPU_SHORT, _LOGITS_ELSEWHERE = 2**18, 2**20, 2**25
_SHORT = 128


@dataclasses.dataclass(frozen=True)
class Span:
  """Blocks that are worked on by one loop: how many from which, with how many keys each, from which on."""

  first: int
  count: int
  low: int
  width: int
  high: int  # end of the keys of the last block

  @property
  def moves(self) -> bool:
    """Whether the blocks have ranges of keys of their own."""
    return self.high - self.low > self.width


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes, and what they make of arrays."""

  B: int
  T: int
  S: int
  H: int
  G: int
  Q: int  # query rows of a block
  N: int  # pairs of a chunk
  left: int  # keys that a row may see before itself, and after itself
  right: int

  @classmethod
  def of(cls, q_BxTxHxK, k_BxSxGxK, causal, window):
    """Window: as in `forward`."""
    B, T, H, _ = q_BxTxHxK.shape
    S, G = k_BxSxGxK.shape[1:3]
    left, right = (S + T, S + T) if window is None else window
    right = 0 if causal else right
    if not all(isinstance(n, int) for n in (B, T, S)):  # symbolic, for jax.export: nothing can be asked of them
      return cls(B, T, S, H, G, _ROWS, G, left, right)
    blocks = math.ceil(T / _ROWS) if T > _ROWS else min(2, T)
    Q = math.ceil(T / blocks / 8) * 8 if T > 8 else T
    logits = _LOGITS_CPU if S > _SHORT else _LOGITS_CPU_SHORT
    if jax.default_backend() != "cpu":
      logits = _LOGITS_ELSEWHERE
    most = max(2, logits // (Q * min(S, left + Q + right) * (H // G)))
    N = max(n for n in range(1, min(most, B * G) + 1) if B * G % n == 0)
    return cls(B, T, S, H, G, Q, N, left, right)

  @property
  def R(self) -> int:
    return self.H // self.G

  @property
  def blocks(self) -> int:
    return -(-self.T // self.Q)

  @property
  def spans(self) -> list[Span]:
    if not isinstance(self.blocks, int) or not isinstance(self.S, int):
      return [Span(0, self.blocks, 0, self.S, self.S)]
    seen = self.left + self.Q + self.right  # keys of a block
    # Keys end with the rows, and a block sees many of them: a loop for each few blocks. Otherwise one for all.
    step = math.ceil(self.blocks / _SPANS) if self.right < self.S < 4 * seen else self.blocks
    spans = []
    for first in range(0, self.blocks, step):
      count = min(step, self.blocks - first)
      high = min((first + count) * self.Q + self.right, self.S)
      low = max(0, min(first * self.Q - self.left, high - 1))
      spans.append(Span(first, count, low, min(high - low, seen), high))
    return spans

  def pairs(self):
    """Indices of the pairs, [C, N]."""
    return jnp.arange(self.B * self.G).reshape(-1, self.N)

  def queries(self, x_BxTxHxK):
    """[C, N, R, T, K], T padded to whole blocks."""
    return self.rows(jnp.swapaxes(x_BxTxHxK, 1, 2))

  def rows(self, x_BxHxT):
    """[C, N, R, T], or with a further axis, T padded to whole blocks."""
    x = self.whole(x_BxHxT)
    return x.reshape(-1, self.N, self.R, *x.shape[2:])

  def whole(self, x_BxHxT):
    """T padded to whole blocks."""
    padding = [(0, 0)] * x_BxHxT.ndim
    padding[2] = (0, self.blocks * self.Q - self.T)
    return jnp.pad(x_BxHxT, padding)

  def keys(self, x_BxSxGxK):
    """[C, N, S, K]."""
    return jnp.swapaxes(x_BxSxGxK, 1, 2).reshape(-1, self.N, self.S, x_BxSxGxK.shape[-1])

  def block(self, x_NxRxT, i):
    """Rows of block i."""
    return jax.lax.dynamic_slice_in_dim(x_NxRxT, i * self.Q, self.Q, axis=2)

  def merged(self, x_NxRxQ):
    """The rows of all R heads on one axis."""
    return x_NxRxQ.reshape(x_NxRxQ.shape[0], self.R * self.Q, *x_NxRxQ.shape[3:])

  def join(self, x_countxNxM):
    """[count, N, M, …] → [N, R, count Q, …]."""
    x = x_countxNxM.reshape(*x_countxNxM.shape[:2], self.R, self.Q, *x_countxNxM.shape[3:])
    return jnp.moveaxis(x, 0, 2).reshape(x.shape[1], self.R, -1, *x.shape[4:])

  def start(self, span, i):
    """The first of the keys of block i."""
    return jnp.clip(i * self.Q - self.left, span.low, span.high - span.width) if span.moves else span.low

  def of_pairs(self, x_BxHxTxS, pairs_N):
    """What a mask or bias, each of whose first three axes may be 1, says of a chunk: [N or 1, R or 1, T or 1, S]."""
    b, h, t, _ = x_BxHxTxS.shape
    if t != 1:
      x_BxHxTxS = self.whole(x_BxHxTxS)
    x = x_BxHxTxS.reshape(b, *((1, 1) if h == 1 else (self.G, self.R)), *x_BxHxTxS.shape[2:])
    if b == h == 1:
      return x[0]
    return x[self.indices(pairs_N, b, h)]

  def indices(self, pairs_N, b: int, h: int):
    """Of a chunk's pairs in arrays [B or 1, G or 1]."""
    return pairs_N // self.G if b != 1 else 0 * pairs_N, pairs_N % self.G if h != 1 else 0 * pairs_N

  def tile(self, x_NxRxTxS, i, start, width):
    """The part of `of_pairs` for block i and its keys, broadcastable to [N, M, W]."""
    if x_NxRxTxS.shape[2] != 1:
      x_NxRxTxS = self.block(x_NxRxTxS, i)
    x = jax.lax.dynamic_slice_in_dim(x_NxRxTxS, start, width, axis=3)
    return self.merged(jnp.broadcast_to(x, (x.shape[0], self.R, self.Q, width)))

  def near(self, i, start, width):
    """Which of its keys the rows of block i may see by position, [1, M, W]; None: all."""
    rows_Qx1 = i * self.Q + jnp.arange(self.Q)[:, None]
    keys_1xW = start + jnp.arange(width)[None]
    near = None
    if self.right < self.S:
      near = keys_1xW <= rows_Qx1 + self.right
    if self.left < self.T:
      after = keys_1xW >= rows_Qx1 - self.left
      near = after if near is None else near & after
    if near is None:
      return None
    return self.merged(jnp.broadcast_to(near[None, None], (1, self.R, self.Q, width)))

  def to_BxHxT(self, x_CxNxRxT):
    return x_CxNxRxT.reshape(self.B, self.H, *x_CxNxRxT.shape[3:])[:, :, : self.T]

  def to_BxTxHxK(self, x_CxNxRxTxK):
    return jnp.swapaxes(self.to_BxHxT(x_CxNxRxTxK), 1, 2)

  def to_BxSxGxK(self, x_CxNxSxK):
    return jnp.swapaxes(x_CxNxSxK.reshape(self.B, self.G, *x_CxNxSxK.shape[2:]), 1, 2)
