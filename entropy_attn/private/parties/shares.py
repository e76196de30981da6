"""Shares of values in the engine's rings: made, moved between the rings, and packed for the line."""

import re
import struct

import numpy as np

from entropy_attn.private.parties.engine import core, runtime_config
from entropy_attn.private.parties.wire import PeerLost
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import NARROW, WIDE


class Ring:
  """One ring of one party: its runtime and how values enter and leave it.

  Args:
    ring: its bits.
    link: of the engine, to the other party.
    parties: how many there are.
    protocol: the engine's name of it: CHEETAH, or REF2K of one party alone.
    threads: see `engine.runtime_config`.
  """

  def __init__(self, settings: Settings, ring: int, link, parties: int, protocol: str, threads: int):
    libspu = core()
    config = runtime_config(settings, ring, protocol, threads)
    self.runtime = libspu.RuntimeWrapper(link, config)
    self.io = libspu.IoWrapper(parties, config)

  def shares(self, array: np.ndarray, owner: int = -1):
    """Shares of a value, one a party.

    Args:
      owner: the rank of the party that alone knows it; -1: it becomes secret to all.
    """
    return self.io.MakeShares(np.ascontiguousarray(array), core().Visibility.VIS_SECRET, owner)

  def open(self, shares) -> np.ndarray:
    """The value that all parties' shares are of."""
    return self.io.Reconstruct(shares)


def moved(share, ring: int):
  """A share of one ring as one of the other: the lower half of a wide ring, or the upper half from a narrow one."""
  meta = _meta(share)
  if ring == NARROW:
    bits = numbers(share, WIDE).astype(np.uint32)
  else:
    bits = numbers(share, NARROW).astype(np.uint64) << np.uint64(WIDE - NARROW)
  meta.storage_type = re.sub(r"FM\d+", f"FM{ring}", meta.storage_type)
  return _share(meta.SerializeToString(), [_chunk(bits)])


def numbers(share, ring: int) -> np.ndarray:
  """A share as integers of its shape, uint64 or uint32 as its ring has bits."""
  meta = _meta(share)
  raw = b"".join(_content(chunk) for chunk in share.share_chunks)
  return np.frombuffer(raw, f"uint{ring}").reshape(tuple(meta.shape.dims))


def of_numbers(numbers: np.ndarray, like):
  """The share that some integers are, uint64 or uint32 as the ring has bits.

  Args:
    like: a share of that ring and shape, of the same party: its meta data are taken.
  """
  return _share(like.meta, [_chunk(np.ascontiguousarray(numbers))])


def as_integers(share):
  """A share of numbers with a point as one of the ring's integers: the same bits."""
  return _labelled(share, core().DataType.DT_I32)


def as_fixed_point(share):
  """A share of the ring's integers as one of numbers with a point: the same bits."""
  return _labelled(share, core().DataType.DT_F32)


def _labelled(share, data_type):
  meta = _meta(share)
  meta.data_type = data_type
  return _share(meta.SerializeToString(), share.share_chunks)


def _meta(share):
  meta = core().ValueMeta()
  meta.ParseFromString(share.meta)
  return meta


def _chunk(numbers: np.ndarray) -> bytes:
  chunk = core().ValueChunk()
  chunk.total_bytes, chunk.chunk_offset, chunk.content = numbers.nbytes, 0, numbers.tobytes()
  return chunk.SerializeToString()


def _content(chunk: bytes) -> bytes:
  parsed = core().ValueChunk()
  parsed.ParseFromString(chunk)
  return parsed.content


def packed(share) -> bytes:
  """A share as bytes that `unpacked` reads."""
  parts = [share.meta, *share.share_chunks]
  return struct.pack(f"!I{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def unpacked(data: bytes):
  """The share in some bytes.

  Raises:
    PeerLost: where they are none.
  """
  try:
    (count,) = struct.unpack_from("!I", data)
    sizes = struct.unpack_from(f"!{count}Q", data, 4)
    at, parts = 4 + 8 * count, []
    for size in sizes:
      parts.append(data[at : at + size])
      at += size
  except struct.error as error:
    raise PeerLost("it sends what is no share") from error
  return _share(parts[0], parts[1:])


def _share(meta: bytes, chunks: list[bytes]):
  share = core().Share()
  share.meta, share.share_chunks = meta, chunks
  return share
