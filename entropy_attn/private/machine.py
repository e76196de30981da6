"""Machines that run steps on named variables: one of two parties, or a reference that computes alone."""

from collections.abc import Mapping
import re
import struct

import numpy as np

from entropy_attn.private.engine import RANKS, Settings, core
from entropy_attn.private.program import NARROW, SERVER, WIDE, Step, Variable
from entropy_attn.private.wire import Connection, PeerLost


class _Ring:
  """One ring of one party: its runtime and how values enter and leave it."""

  def __init__(self, settings: Settings, ring: int, link, parties: int, protocol: str, threads: int):
    libspu = core()
    config = settings.runtime(ring, protocol, threads)
    self.runtime = libspu.RuntimeWrapper(link, config)
    self.io = libspu.IoWrapper(parties, config)

  def shares(self, array: np.ndarray, owner: int = -1):
    """Of a value: owner's alone, or secret to all (-1)."""
    return self.io.MakeShares(np.ascontiguousarray(array), core().Visibility.VIS_SECRET, owner)

  def open(self, shares) -> np.ndarray:
    """The value of all parties' shares."""
    return self.io.Reconstruct(shares)


def _moved(share, ring: int):
  """A share of one ring as one of the other: the lower half of a wide ring, or the upper half from a narrow one."""
  libspu = core()
  meta = libspu.ValueMeta()
  meta.ParseFromString(share.meta)
  raw = b"".join(_content(chunk) for chunk in share.share_chunks)
  if ring == NARROW:
    numbers = np.frombuffer(raw, np.uint64).astype(np.uint32)
  else:
    numbers = np.frombuffer(raw, np.uint32).astype(np.uint64) << np.uint64(WIDE - NARROW)
  meta.storage_type = re.sub(r"FM\d+", f"FM{ring}", meta.storage_type)
  chunk = libspu.ValueChunk()
  chunk.total_bytes, chunk.chunk_offset, chunk.content = numbers.nbytes, 0, numbers.tobytes()
  moved = libspu.Share()
  moved.meta, moved.share_chunks = meta.SerializeToString(), [chunk.SerializeToString()]
  return moved


def _content(chunk: bytes) -> bytes:
  parsed = core().ValueChunk()
  parsed.ParseFromString(chunk)
  return parsed.content


def _packed(share) -> bytes:
  parts = [share.meta, *share.share_chunks]
  return struct.pack(f"!I{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def _unpacked(data: bytes):
  try:
    (count,) = struct.unpack_from("!I", data)
    sizes = struct.unpack_from(f"!{count}Q", data, 4)
    at, parts = 4 + 8 * count, []
    for size in sizes:
      parts.append(data[at : at + size])
      at += size
  except struct.error as error:
    raise PeerLost("it sends what is no share") from error
  share = core().Share()
  share.meta, share.share_chunks = parts[0], parts[1:]
  return share


class _Machine:
  """Runs steps on named variables, and moves them between the rings."""

  def __init__(self, rings: Mapping[int, _Ring]):
    self._rings = rings
    self._where: dict[str, int] = {}  # the ring that holds a variable

  def run(self, step: Step, code: bytes) -> None:
    """One step."""
    for name in step.reads:
      if self._where[name] != step.ring:
        share = self._rings[self._where[name]].runtime.GetVar(name)
        self.forget(name)
        self._set(name, _moved(share, step.ring), step.ring)
    self._rings[step.ring].runtime.Run(core().Executable(step.kind, list(step.reads), list(step.writes), code))
    for name in step.writes:
      if self._where.get(name, step.ring) != step.ring:
        self.forget(name)
      self._where[name] = step.ring

  @property
  def names(self) -> list[str]:
    """Of the variables that there are."""
    return list(self._where)

  def forget(self, name: str) -> None:
    """Frees a variable."""
    self._rings[self._where.pop(name)].runtime.DelVar(name)

  def rename(self, name: str, new: str) -> None:
    """Keeps a variable under another name."""
    ring = self._where[name]
    share = self._rings[ring].runtime.GetVar(name)
    self.forget(name)
    self._set(new, share, ring)

  def _set(self, name, share, ring):
    self._rings[ring].runtime.SetVar(name, share)
    self._where[name] = ring


class Party(_Machine):
  """One of the two parties, over a connection.

  Args:
    role: SERVER or CLIENT.
    threads: of this process; 0: all cores.
  """

  def __init__(self, connection: Connection, role: str, settings: Settings, threads: int = 0):
    self._connection, self.role = connection, role
    rings = {
      ring: _Ring(settings, ring, _link(connection, role, ring), 2, "CHEETAH", threads) for ring in (WIDE, NARROW)
    }
    super().__init__(rings)

  def give(self, name: str, variable: Variable, value: np.ndarray | None) -> None:
    """Makes an input known to the engine: `value` at its owner, None at the other party."""
    wide, me = self._rings[WIDE], RANKS[self.role]
    if variable.owner in RANKS:
      stand_in = np.zeros(variable.shape, variable.dtype) if value is None else value
      self._set(name, wide.shares(stand_in, RANKS[variable.owner])[me], WIDE)
    elif value is not None:  # shared by the client
      shares = wide.shares(value)
      self._connection.send(f"share:{name}", _packed(shares[1 - me]))
      self._set(name, shares[me], WIDE)
    else:
      self._set(name, _unpacked(self._connection.receive(f"share:{name}")), WIDE)

  def reveal_to_client(self, name: str) -> np.ndarray | None:
    """The value, at the client; the server learns nothing."""
    ring = self._rings[self._where[name]]
    share = ring.runtime.GetVar(name)
    if self.role == SERVER:
      self._connection.send(f"reveal:{name}", _packed(share))
      return None
    other = _unpacked(self._connection.receive(f"reveal:{name}"))
    try:
      return ring.open([other, share])
    except RuntimeError as error:
      raise PeerLost("it sends what is no share") from error


class Reference(_Machine):
  """One process that computes in fixed point as two parties would, without their secrecy."""

  def __init__(self, settings: Settings):
    libspu = core()
    rings = {}
    for ring in (WIDE, NARROW):
      desc = libspu.link.Desc()
      desc.add_party("alone", "alone")
      rings[ring] = _Ring(settings, ring, libspu.link.create_mem(desc, 0), 1, "REF2K", 0)
    super().__init__(rings)

  def give(self, name: str, variable: Variable, value: np.ndarray) -> None:
    """Makes an input known to the engine."""
    self._set(name, self._rings[WIDE].shares(value)[0], WIDE)

  def value(self, name: str) -> np.ndarray:
    """Of a variable."""
    ring = self._rings[self._where[name]]
    return ring.open([ring.runtime.GetVar(name)])


def _link(connection: Connection, role: str, ring: int):
  """The engine's link over our connection."""
  libspu = core()

  class Channel(libspu.link.IChannel):
    """What the engine asks of a transport."""

    def Send(self, key, data):
      connection.send(f"{ring}/{key}", bytes(data))

    SendAsync = SendAsyncThrottled = Send

    def Recv(self, key):
      return connection.receive(f"{ring}/{key}")

    def SetRecvTimeout(self, milliseconds):
      pass  # the connection's own rules hold

    def GetRecvTimeout(self):
      return 2**31

    def TestSend(self, timeout):
      pass

    def TestRecv(self):
      pass

    def SetThrottleWindowSize(self, size):
      pass

    def SetChunkParallelSendSize(self, size):
      pass

    def WaitLinkTaskFinish(self):
      pass

    def Abort(self):
      pass

  desc = libspu.link.Desc()
  for owner in RANKS:
    desc.add_party(owner, owner)
  me = RANKS[role]
  channels = [None, None]
  channels[1 - me] = Channel()
  return libspu.link.create_with_channels(desc, me, channels)
