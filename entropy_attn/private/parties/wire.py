"""The one connection of two parties: their control messages and the engine's messages, counted, checked and timed.

Frames have a fixed header, a key, a payload and a checksum. A beat every other second tells that a party lives; where
nothing comes for longer than the timeout, or the connection ends, or a frame is not one, everything that waits raises
`PeerLost` at once. A stranger is given little: control messages are small, no message of the engine may come before the
session expects it (`Connection.expect`), memory grows by what has arrived, and little may wait unread.

Rounds are the longest chain of messages of which each was sent after the one before had arrived, two messages a round:
every message carries its place in that chain. Threads of one party that work side by side have chains of their own.
"""

import collections
import contextlib
import dataclasses
import json
import queue
import socket
import struct
import threading
import time
import zlib

from entropy_attn.private.parties.words import MEANING, Ending

_HEADER = struct.Struct("!4sBHQII")  # magic, kind, bytes of the key, bytes of the payload, place in the chain, checksum
_MAGIC = b"EAp1"
_CONTROL, _ENGINE, _BEAT, _BYE = range(4)
_BEAT_SECONDS = 2.0
_CONTROL_BYTES = 2**16  # of a control message, until more is expected
_UNREAD_CONTROLS = 64
_UNREAD_BYTES = 2**30  # of the engine's messages that nobody has asked for yet
_OVERHEAD = 256  # bytes of memory that a message takes beside its own
_CHUNK = 2**18
_NO_MESSAGE = "it sends what is no message of this program"
_TOO_MUCH = "it sends more than it was asked for"


class PeerLost(Exception):
  """The other party is gone, stalls, or sends what is no message."""


class PeerEnded(PeerLost):
  """The other party has said that it ends.

  Attributes:
    ending: what it said.
  """

  def __init__(self, ending: Ending):
    super().__init__(MEANING[ending])
    self.ending = ending


class Overdue(PeerLost):
  """The other party lives, but does not say what is awaited of it."""


@dataclasses.dataclass
class Counts:
  """What went over the wire: bytes and messages of the engine, each way, and rounds (half the longest chain)."""

  sent: int = 0
  received: int = 0
  sent_messages: int = 0
  received_messages: int = 0
  chain: int = 0

  def __sub__(self, other: "Counts") -> "Counts":
    return Counts(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


class Connection:
  """A connected socket of two parties.

  Args:
    sock: connected, from `sockets`.
    timeout: seconds without any sign of the peer after which it counts as lost.
    patience: seconds without a message of the engine, while one is awaited, after which it counts as lost: its process
      lives, its computation does not. One product takes 30 s at GPT-2 small's size on two cores.
    rtt: seconds of round-trip time to imitate; both parties must.
    bandwidth: bytes a second of each direction to imitate; None: what there is.
    unread: bytes of the engine's messages that may wait until they are received; 0: none may come before `expect`.
  """

  def __init__(
    self,
    sock: socket.socket,
    *,
    timeout: float = 30.0,
    patience: float = 900.0,
    rtt: float = 0.0,
    bandwidth: float | None = None,
    unread: int = _UNREAD_BYTES,
  ):
    sock.settimeout(None)
    with contextlib.suppress(OSError):  # a pair of local sockets has no such option
      sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.timeout, self._patience = timeout, patience
    self._sock, self._delay, self._bandwidth = sock, rtt / 2, bandwidth
    self._lost: str | None = None
    self._ending: Ending | None = None
    self._closing = self._peer_done = self._read_all = self._said_all = False
    self._control_bytes, self._unread_most, self._unread = _CONTROL_BYTES, unread, 0
    self._heard = time.monotonic()
    self._engine_heard = time.monotonic()
    self._controls = collections.deque()
    self._boxes: dict[str, collections.deque] = {}
    self._changed = threading.Condition()
    self._counts = Counts()
    self._main: int | None = None  # the thread whose chain is the party's
    self._thread_chain: dict[int, int] = {}
    self._link_chain: dict[str, int] = {}
    self._outgoing: queue.Queue = queue.Queue()
    for work in (self._read, self._write, self._beat):
      threading.Thread(target=work, name=f"wire {work.__name__}", daemon=True).start()

  # --- control messages ---

  def tell(self, message: dict) -> None:
    """Sends a control message."""
    self._put(_CONTROL, "", json.dumps(message).encode(), 0)

  def hear(self, within: float | None = None) -> dict:
    """The next control message.

    Args:
      within: seconds; None: the connection's patience.

    Raises:
      Overdue: if none comes in time.
      PeerLost: if none comes any more.
    """
    within = self._patience if within is None else within
    with self._changed:
      came = lambda: self._controls or self._lost or self._peer_done
      if not self._changed.wait_for(came, timeout=within):
        raise Overdue(f"it lives, but has not said what was awaited for {within:.0f} s")
      if self._controls:
        return self._controls.popleft()
      raise self._loss()

  def expect(self, *, control: int = 0, engine: int = 0) -> None:
    """Lets larger control messages, and more bytes of the engine's unread messages, come from now on."""
    with self._changed:
      self._control_bytes = max(self._control_bytes, control)
      self._unread_most = max(self._unread_most, engine)

  def end(self, ending: Ending) -> None:
    """Tells the other why this party ends, if it still listens, and closes."""
    with contextlib.suppress(PeerLost):
      self.tell({"end": ending.value})
    self.close()

  # --- the engine's messages ---

  def send(self, key: str, payload: bytes) -> None:
    """Sends a message of the engine."""
    link, thread = key.split(":", 1)[0], threading.get_ident()
    with self._changed:
      self.raise_if_lost()
      chain = max(self._thread_chain.get(thread, self._chain_of_main()), self._link_chain.get(link, 0))
      self._thread_chain[thread] = chain
      self._counts.sent += len(payload)
      self._counts.sent_messages += 1
    self._put(_ENGINE, key, payload, chain + 1)

  def receive(self, key: str) -> bytes:
    """The next message of the engine under a key.

    Raises:
      PeerLost: if none comes any more.
    """
    link, thread = key.split(":", 1)[0], threading.get_ident()
    with self._changed:
      came = lambda: self._boxes.get(key) or self._lost or self._peer_done
      while not self._changed.wait_for(came, timeout=self._patience):
        if time.monotonic() - self._engine_heard > self._patience:
          self.fail(f"it lives, but has computed nothing for {self._patience:.0f} s")
      box = self._boxes.get(key)
      if not box:
        raise self._loss()
      chain, payload = box.popleft()
      self._unread -= len(payload) + _OVERHEAD
      if not box:
        del self._boxes[key]
      self._thread_chain[thread] = max(self._thread_chain.get(thread, 0), chain)
      self._link_chain[link] = max(self._link_chain.get(link, 0), chain)
      return payload

  def counts(self) -> Counts:
    """What the engine's messages came to until now; called by the thread that runs the engine."""
    with self._changed:
      self._main = threading.get_ident()
      return dataclasses.replace(self._counts, chain=self._chain_of_main())

  # --- its state ---

  @property
  def lost(self) -> str | None:
    """Why the peer counts as lost, or None."""
    return self._lost

  @property
  def heard(self) -> float:
    """When the peer last gave a sign of life, by the monotonic clock."""
    return self._heard

  def fail(self, reason: str) -> None:
    """Makes everything that waits raise PeerLost with this reason."""
    with self._changed:
      if self._lost is None and not self._closing:
        self._lost = reason
      self._changed.notify_all()
    with contextlib.suppress(OSError):
      self._sock.shutdown(socket.SHUT_RDWR)

  def raise_if_lost(self) -> None:
    """Raises PeerLost where the peer counts as lost, or has ended."""
    if self._lost is not None:
      raise self._loss()

  def close(self) -> None:
    """Ends the connection in peace, after all that was said; where the other does not take it in time, without."""
    self._closing = True
    self._outgoing.put((time.monotonic(), _BYE, b"", b"", 0))
    with self._changed:
      self._changed.wait_for(lambda: self._said_all, timeout=self.timeout)
    with contextlib.suppress(OSError):
      self._sock.shutdown(socket.SHUT_WR if self._said_all else socket.SHUT_RDWR)
    with self._changed:  # the other's last words may still be on their way
      self._changed.wait_for(lambda: self._read_all, timeout=min(5.0, self.timeout))
    self._sock.close()

  # --- threads ---

  def _put(self, kind: int, key: str, payload: bytes, chain: int) -> None:
    self.raise_if_lost()
    self._outgoing.put((time.monotonic(), kind, key.encode(), payload, chain))

  def _write(self) -> None:
    free = 0.0  # when the imitated line has sent all before
    kind = None
    while kind != _BYE:
      queued, kind, key, payload, chain = self._outgoing.get()
      header = _HEADER.pack(_MAGIC, kind, len(key), len(payload), chain, zlib.crc32(payload, zlib.crc32(key)))
      if self._delay or self._bandwidth:
        size = len(header) + len(key) + len(payload)
        free = max(free, queued) + (size / self._bandwidth if self._bandwidth else 0.0)
        time.sleep(max(0.0, free + self._delay - time.monotonic()))
      try:
        self._sock.sendall(header + key + payload if len(payload) < 4096 else header + key)
        if len(payload) >= 4096:
          self._sock.sendall(payload)
      except BrokenPipeError:  # noticed here or where it is read, whichever comes first
        self.fail("it ended without a word")
      except OSError as error:
        self.fail(f"the connection broke ({error.strerror or error})")
    with self._changed:
      self._said_all = True
      self._changed.notify_all()

  def _beat(self) -> None:
    while not self._lost and not self._closing:
      with contextlib.suppress(PeerLost):
        self._put(_BEAT, "", b"", 0)
      time.sleep(min(_BEAT_SECONDS, self.timeout / 4))
      if not self._peer_done and time.monotonic() - self._heard > self.timeout:
        self.fail(f"no sign of life for {self.timeout:.0f} s")

  def _read(self) -> None:
    try:
      while not self._peer_done:
        magic, kind, key_size, size, chain, checksum = _HEADER.unpack(self._exactly(_HEADER.size))
        if magic != _MAGIC or kind > _BYE or (key_size and kind != _ENGINE) or (size and kind in (_BEAT, _BYE)):
          raise PeerLost(_NO_MESSAGE)
        self._check_room(kind, key_size + size)
        key, payload = self._exactly(key_size), self._exactly(size)
        if zlib.crc32(payload, zlib.crc32(key)) != checksum:
          raise PeerLost("a message arrived damaged")
        self._deliver(kind, key.decode(), payload, chain)
    except PeerLost as lost:
      self.fail(str(lost))
    except Exception as error:  # whatever it is that the other sent, nobody may wait for ever
      self.fail(f"the connection broke ({error})")
    finally:
      with self._changed:
        self._read_all = True
        self._changed.notify_all()

  def _check_room(self, kind: int, size: int) -> None:
    """Raises PeerLost for a message that is too large, or one too many, before anything of it is kept."""
    with self._changed:
      if kind == _CONTROL and size > self._control_bytes:
        raise PeerLost(_NO_MESSAGE)
      if kind == _CONTROL and len(self._controls) >= _UNREAD_CONTROLS:
        raise PeerLost(_TOO_MUCH)
      if kind == _ENGINE and self._unread + size + _OVERHEAD > self._unread_most:
        raise PeerLost(_TOO_MUCH)

  def _deliver(self, kind: int, key: str, payload: bytes, chain: int) -> None:
    control = _parsed(payload) if kind == _CONTROL else None
    with self._changed:
      if control is not None and "end" in control:
        self._ending = _ending_of(control["end"])
        self._lost = self._lost or MEANING[self._ending]
      elif control is not None:
        self._controls.append(control)
      elif kind == _ENGINE:
        self._boxes.setdefault(key, collections.deque()).append((chain, payload))
        self._unread += len(payload) + _OVERHEAD
        self._counts.received += len(payload)
        self._counts.received_messages += 1
        self._engine_heard = time.monotonic()
      elif kind == _BYE:
        self._peer_done = True
      self._changed.notify_all()

  def _exactly(self, size: int) -> bytes:
    """The next `size` bytes; memory grows by what comes, whatever was announced."""
    parts = bytearray(min(size, _CHUNK))
    have = 0
    while have < size:
      if have == len(parts):
        parts.extend(bytes(min(size - have, have)))
      with memoryview(parts) as view:
        got = self._sock.recv_into(view[have:])
      if not got:
        raise PeerLost("it ended without a word")
      have += got
      self._heard = time.monotonic()
    return bytes(parts)

  def _chain_of_main(self) -> int:
    return self._thread_chain.get(self._main, 0)

  def _loss(self) -> PeerLost:
    if self._ending is not None:
      return PeerEnded(self._ending)
    return PeerLost(self._lost or "it closed the connection")


def _parsed(payload: bytes) -> dict:
  try:
    control = json.loads(payload)
  except (ValueError, RecursionError) as error:
    raise PeerLost(_NO_MESSAGE) from error
  if not isinstance(control, dict):
    raise PeerLost(_NO_MESSAGE)
  return control


def _ending_of(code) -> Ending:
  try:
    return Ending(code)
  except ValueError as error:
    raise PeerLost(_NO_MESSAGE) from error
