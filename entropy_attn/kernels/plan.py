"""How blockwise attention cuts its work, and the arrays with it.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, R = H / G query heads of a key
head, K head width; N pairs of a sequence and a key head in a chunk; Q query rows of a block, M = R Q, W its keys.

Arrays stay as they are given: each block cuts its rows out of them and puts its results in their place. Laying out
whole arrays for the loops took a sixth of the time on a CPU, most of whose copies are made by one core.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

_ROWS = 128  # query rows of a block
# The blocks are cut into at most so many spans, each with its own range of keys: half the work if causal. Twice as many
# take twice as long to compile, which pays where there are many blocks.
_SPANS, _SPANS_OF_MANY, _MANY = 8, 16, 64
# Logits that are worked on at once, measured on CPUs: few enough for the caches, but where a sequence is short enough
# for its chunks to cost more than they save. Elsewhere they should be many enough to fill the machine.
_LOGITS_CPU, _LOGITS_CPU_SHORT, _LOGITS_ELSEWHERE = 2**18, 2**20, 2**25
_SHORT = 128
_TURNED = 1024  # keys from which sums over rows are faster with one factor transposed, on CPUs


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
  """Sizes, and what they make of arrays. A chunk is `at` its first sequence and key head."""

  B: int
  T: int
  S: int
  H: int
  G: int
  Q: int  # query rows of a block
  b: int  # sequences of a chunk
  g: int  # key heads of a chunk
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
      return cls(B, T, S, H, G, _ROWS, 1, G, left, right)
    blocks = math.ceil(T / _ROWS) if T > _ROWS else min(2, T)
    Q = math.ceil(T / blocks / 8) * 8 if T > 8 else T
    logits = _LOGITS_CPU if S > _SHORT else _LOGITS_CPU_SHORT
    if jax.default_backend() != "cpu":
      logits = _LOGITS_ELSEWHERE
    most = max(2, logits // (Q * min(S, left + Q + right) * (H // G)))
    return cls(B, T, S, H, G, Q, *_chunk(B, G, most), left, right)

  @property
  def R(self) -> int:
    return self.H // self.G

  @property
  def N(self) -> int:
    return self.b * self.g

  @property
  def blocks(self) -> int:
    return -(-self.T // self.Q)

  @property
  def spans(self) -> list[Span]:
    if not isinstance(self.blocks, int) or not isinstance(self.S, int):
      return [Span(0, self.blocks, 0, self.S, self.S)]
    seen = self.left + self.Q + self.right  # keys of a block
    # Keys end with the rows, and a block sees many of them: a loop for each few blocks. Otherwise one for all.
    most = _SPANS if self.blocks < _MANY else _SPANS_OF_MANY
    step = math.ceil(self.blocks / most) if self.right < self.S < 4 * seen else self.blocks
    spans = []
    for first in range(0, self.blocks, step):
      count = min(step, self.blocks - first)
      high = min((first + count) * self.Q + self.right, self.S)
      low = max(0, min(first * self.Q - self.left, high - 1))
      spans.append(Span(first, count, low, min(high - low, seen), high))
    return spans

  @property
  def turned(self) -> bool:
    """Whether sums over rows are made with a transposed copy of their smaller factor.

    A CPU's compiler has two libraries for products, and chooses by their axes.
    """
    return isinstance(self.S, int) and self.S >= _TURNED and jax.default_backend() == "cpu"

  def over_blocks(self, block, carry, *arrays_BxSxGxK):
    """The carry after block(carry, at, i, start, *arrays [N, W, K]) of each block i of each chunk.

    Its keys begin with `start`. Where all blocks of a span have the same, they are cut out once.
    """
    per_sequence = self.G // self.g

    def chunk(carry, c):
      at = c // per_sequence * self.b, c % per_sequence * self.g
      for span in self.spans:
        cut = lambda start, span=span: [self.keys(x, at, start, span.width) for x in arrays_BxSxGxK]
        once = None if span.moves else cut(span.low)

        def step(carry, i, span=span, cut=cut, once=once):
          if once is not None:
            return block(carry, at, i, span.low, *once), None
          start = jnp.clip(i * self.Q - self.left, span.low, span.high - span.width)
          return block(carry, at, i, start, *cut(start)), None

        carry, _ = jax.lax.scan(step, carry, span.first + jnp.arange(span.count))
      return carry, None

    return jax.lax.scan(chunk, carry, jnp.arange((self.B // self.b) * per_sequence))[0]

  def whole(self, x, axis):
    """T padded to whole blocks."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, self.blocks * self.Q - self.T)
    return jnp.pad(x, padding)

  def rows(self, x_BxTxHxK, at, i):
    """Of block i of a chunk, [N, M, K]."""
    b, g = at
    sizes = (self.b, self.Q, self.g * self.R, x_BxTxHxK.shape[3])
    x = jax.lax.dynamic_slice(x_BxTxHxK, (b, i * self.Q, g * self.R, 0), sizes)
    return jnp.swapaxes(x, 1, 2).reshape(self.N, self.R * self.Q, sizes[3])

  def put_rows(self, x_BxTxHxK, rows_NxMxK, at, i):
    b, g = at
    rows = rows_NxMxK.reshape(self.b, self.g * self.R, self.Q, rows_NxMxK.shape[2])
    return jax.lax.dynamic_update_slice(x_BxTxHxK, jnp.swapaxes(rows, 1, 2), (b, i * self.Q, g * self.R, 0))

  def figures(self, x_BxHxT, at, i):
    """Of the rows of block i of a chunk, [N, M, 1]."""
    b, g = at
    x = jax.lax.dynamic_slice(x_BxHxT, (b, g * self.R, i * self.Q), (self.b, self.g * self.R, self.Q))
    return x.reshape(self.N, self.R * self.Q, 1)

  def put_figures(self, x_BxHxT, figures_NxMx1, at, i):
    b, g = at
    figures = figures_NxMx1.reshape(self.b, self.g * self.R, self.Q)
    return jax.lax.dynamic_update_slice(x_BxHxT, figures, (b, g * self.R, i * self.Q))

  def keys(self, x_BxSxGxK, at, start, width):
    """Of a chunk, [N, W, K]."""
    b, g = at
    x = jax.lax.dynamic_slice(x_BxSxGxK, (b, start, g, 0), (self.b, width, self.g, x_BxSxGxK.shape[3]))
    return jnp.swapaxes(x, 1, 2).reshape(self.N, width, x.shape[3])

  def add_keys(self, sum_BxGxKxS, x_NxKxW, at, start):
    x = x_NxKxW.reshape(self.b, self.g, *x_NxKxW.shape[1:])
    return _add(sum_BxGxKxS, x, (*at, 0, start))

  def tile(self, x_BxHxTxS, at, i, start, width):
    """Of a mask or bias, each of whose first three axes may be 1, broadcastable to [N, M, W]."""
    sizes = self._tile_sizes(x_BxHxTxS)
    x = jax.lax.dynamic_slice(x_BxHxTxS, self._tile_start(x_BxHxTxS, at, i, start), (*sizes, width))
    if sizes[:2] == (1, 1):
      x = jnp.broadcast_to(x[:, :, None], (1, 1, self.R, self.Q, width))
      return x.reshape(1, self.R * self.Q, width)
    heads = (self.g, self.R) if sizes[1] != 1 else (1, 1)
    x = jnp.broadcast_to(x.reshape(sizes[0], *heads, sizes[2], width), (self.b, self.g, self.R, self.Q, width))
    return x.reshape(self.N, self.R * self.Q, width)

  def add_tile(self, sum_BxHxTxS, x_NxMxW, at, i, start):
    """To a sum shaped as a bias, x summed over the axes that the bias lacks."""
    x = x_NxMxW.reshape(self.b, self.g * self.R, self.Q, x_NxMxW.shape[2])
    sizes = self._tile_sizes(sum_BxHxTxS)
    lacking = tuple(axis for axis in range(3) if sizes[axis] < x.shape[axis])
    x = jnp.sum(x, axis=lacking, keepdims=True)
    return _add(sum_BxHxTxS, x, self._tile_start(sum_BxHxTxS, at, i, start))

  def _tile_sizes(self, x_BxHxTxS):
    b, h, t, _ = x_BxHxTxS.shape
    return self.b if b != 1 else 1, self.g * self.R if h != 1 else 1, self.Q if t != 1 else 1

  def _tile_start(self, x_BxHxTxS, at, i, start):
    b, h, t, _ = x_BxHxTxS.shape
    return at[0] if b != 1 else 0, at[1] * self.R if h != 1 else 0, i * self.Q if t != 1 else 0, start

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
    near = jnp.broadcast_to(near[None], (self.R, self.Q, width))
    return near.reshape(1, self.R * self.Q, width)


def _chunk(B, G, most):
  """How many sequences and key heads at once: most pairs in all, and two where there are, for CPUs' sake.

  Their product of a batch of one is half as fast.
  """
  sizes = [(b * g, g, b) for b in range(1, B + 1) if B % b == 0 for g in range(1, G + 1) if G % g == 0]
  fitting = [size for size in sizes if 2 <= size[0] <= most]
  _, g, b = max(fitting) if fitting else min(size for size in sizes if size[0] > 1 or B * G == 1)
  return b, g


def _add(sum_, x, start):
  """x added to its part of a sum, from `start` on."""
  before = jax.lax.dynamic_slice(sum_, start, x.shape)
  return jax.lax.dynamic_update_slice(sum_, before + x, start)
