"""The one connection of two parties: their control messages and the engine's messages, counted, checked and timed.

Frames have a fixed header, a key, a payload and a checksum. A beat every other second tells that a party lives; where
nothing comes for longer than the timeout, or the connection ends, or a frame is not one, everything that waits raises
`PeerLost` at once.

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

_HEADER = struct.Struct("!4sBHQII")  # magic, kind, bytes of the key, bytes of the payload, place in the chain, checksum
_MAGIC = b"EAp1"
_CONTROL, _ENGINE, _BEAT, _BYE = range(4)
_BEAT_SECONDS = 2.0
_MOST = 2**32  # bytes of a payload: more is no frame of ours


class PeerLost(Exception):
  """The other party is gone, stalls, or sends what is no message."""


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
  """

  def __init__(
    self,
    sock: socket.socket,
    *,
    timeout: float = 30.0,
    patience: float = 900.0,
    rtt: float = 0.0,
    bandwidth: float | None = None,
  ):
    sock.settimeout(None)
    with contextlib.suppress(OSError):  # a pair of local sockets has no such option
      sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.timeout, self._patience = timeout, patience
    self._sock, self._delay, self._bandwidth = sock, rtt / 2, bandwidth
    self._lost: str | None = None
    self._closing = self._peer_done = False
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

  def hear(self) -> dict:
    """The next control message.

    Raises:
      PeerLost: if none comes any more.
    """
    with self._changed:
      self._changed.wait_for(lambda: self._controls or self._lost or self._peer_done)
      if self._controls:
        return self._controls.popleft()
      raise PeerLost(self._lost or "it closed the connection")

  # --- the engine's messages ---

  def send(self, key: str, payload: bytes) -> None:
    """Sends a message of the engine."""
    link, thread = key.split(":", 1)[0], threading.get_ident()
    with self._changed:
      self._raise_if_lost()
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
        raise PeerLost(self._lost or "it closed the connection")
      chain, payload = box.popleft()
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

  def close(self) -> None:
    """Ends the connection in peace, after all that was said."""
    self._put(_BYE, "", b"", 0)
    self._closing = True
    self._outgoing.join()
    with contextlib.suppress(OSError):
      self._sock.shutdown(socket.SHUT_WR)
    with self._changed:  # the other's last words may still be on their way
      self._changed.wait_for(lambda: self._peer_done or self._lost, timeout=min(5.0, self.timeout))
    self._sock.close()

  # --- threads ---

  def _put(self, kind: int, key: str, payload: bytes, chain: int) -> None:
    self._raise_if_lost()
    self._outgoing.put((time.monotonic(), kind, key.encode(), payload, chain))

  def _write(self) -> None:
    free = 0.0  # when the imitated line has sent all before
    while True:
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
      except OSError as error:
        self.fail(f"the connection broke ({error.strerror or error})")
      finally:
        self._outgoing.task_done()

  def _beat(self) -> None:
    while not self._lost and not self._closing:
      with contextlib.suppress(PeerLost):
        self._put(_BEAT, "", b"", 0)
      time.sleep(min(_BEAT_SECONDS, self.timeout / 4))
      if not self._peer_done and time.monotonic() - self._heard > self.timeout:
        self.fail(f"no sign of life for {self.timeout:.0f} s")

  def _read(self) -> None:
    try:
      while True:
        magic, kind, key_size, size, chain, checksum = _HEADER.unpack(self._exactly(_HEADER.size))
        if magic != _MAGIC or kind > _BYE or size > _MOST:
          raise PeerLost("it sends what is no message of this program")
        key, payload = self._exactly(key_size), self._exactly(size)
        if zlib.crc32(payload, zlib.crc32(key)) != checksum:
          raise PeerLost("a message arrived damaged")
        self._deliver(kind, key.decode(), payload, chain)
        if kind == _BYE:
          return
    except PeerLost as lost:
      self.fail(str(lost))
    except (OSError, UnicodeDecodeError) as error:
      self.fail(f"the connection broke ({error})")

  def _deliver(self, kind: int, key: str, payload: bytes, chain: int) -> None:
    control = None
    if kind == _CONTROL:
      try:
        control = json.loads(payload)
      except ValueError as error:
        raise PeerLost("it sends what is no message of this program") from error
      if not isinstance(control, dict):
        raise PeerLost("it sends what is no message of this program")
      if "failed" in control:
        raise PeerLost(f"it gave up: {control['failed']}")
    with self._changed:
      if kind == _CONTROL:
        self._controls.append(control)
      elif kind == _ENGINE:
        self._boxes.setdefault(key, collections.deque()).append((chain, payload))
        self._counts.received += len(payload)
        self._counts.received_messages += 1
        self._engine_heard = time.monotonic()
      elif kind == _BYE:
        self._peer_done = True
      self._changed.notify_all()

  def _exactly(self, size: int) -> bytes:
    parts = bytearray(size)
    view, have = memoryview(parts), 0
    while have < size:
      got = self._sock.recv_into(view[have:])
      if not got:
        raise PeerLost("it ended without a word")
      have += got
      self._heard = time.monotonic()
    return bytes(parts)

  def _chain_of_main(self) -> int:
    return self._thread_chain.get(self._main, 0)

  def _raise_if_lost(self) -> None:
    if self._lost is not None:
      raise PeerLost(self._lost)
