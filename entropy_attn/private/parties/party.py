"""One of the two parties: its machine over the connection with the other."""

from collections.abc import Sequence
import contextlib

import numpy as np

from entropy_attn.private.parties import material
from entropy_attn.private.parties.engine import RANKS, core
from entropy_attn.private.parties.integers import Matrix
from entropy_attn.private.parties.machine import Machine
from entropy_attn.private.parties.material import Mask
from entropy_attn.private.parties.shares import Ring, numbers, of_numbers, packed, unpacked
from entropy_attn.private.parties.wire import Connection, PeerLost
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, NARROW, SERVER, WIDE, Step, Variable


class Party(Machine):
  """One of the two parties, over a connection.

  Args:
    role: SERVER or CLIENT.
    threads: of this process; 0: all cores.
  """

  def __init__(self, connection: Connection, role: str, settings: Settings, threads: int = 0):
    self._connection, self.role = connection, role
    rings = {
      ring: Ring(settings, ring, _link(connection, role, ring), 2, "CHEETAH", threads) for ring in (WIDE, NARROW)
    }
    super().__init__(rings)

  def give(self, name: str, variable: Variable, value: np.ndarray | None) -> None:
    """Makes an input known to the engine.

    Args:
      value: at the party that has it; None at the other.

    Raises:
      PeerLost: where the other goes, or sends what is no share.
    """
    me = RANKS[self.role]
    if variable.whole or variable.owner in RANKS:
      nothing = np.zeros(variable.shape, f"uint{variable.ring}" if variable.whole else variable.dtype)
      stand_in = nothing if value is None else value
      self._set(name, self._own(variable, stand_in, me, RANKS.get(variable.owner, -1)), variable.ring)
    elif value is not None:  # shared by the client
      shares = self._rings[WIDE].shares(value)
      self._connection.send(f"share:{name}", packed(shares[1 - me]))
      self._set(name, shares[me], WIDE)
    else:
      self._take(name, self._connection.receive(f"share:{name}"))

  def weigh(self, step: Step, mask: Mask, matrix: Matrix | None) -> None:
    """Runs a product with the server's weights that was prepared: see `material`.

    Args:
      mask: this party's, for these rows or more.
      matrix: the weights, at the server; None at the client.

    Raises:
      PeerLost: where the other goes, or sends what is no share.
    """
    (mine,), (name,) = self._numbers(step.reads[:1], WIDE), step.writes
    mask = mask.rows(slice(len(mine)))
    if self.role == CLIENT:
      self._connection.send(f"masked:{name}", (mine - mask.operands[0]).tobytes())
      product = mask.product
    else:
      (theirs,) = self._received(name, [mine])
      product = matrix.times(mine + theirs, step.operation.first, step.operation.end) + mask.product
    self._set_numbers(name, product, WIDE)

  def multiply(self, step: Step, mask: Mask) -> None:
    """Runs a product of secrets that was prepared.

    Args:
      mask: this party's.

    Raises:
      PeerLost: where the other goes, or sends what is no share.
    """
    mine, (name,) = self._numbers(step.reads, step.ring), step.writes
    told, used = material.hidden(step.operation, mask, mine)
    self._connection.send(f"masked:{name}", b"".join(x.tobytes() for x in told))
    opened = [x + y for x, y in zip(told, self._received(name, told), strict=True)]
    shapes = [x.shape for x in mine]
    product = material.multiplied(step.operation, used, opened, shapes, first=self.role == SERVER)
    self._set_numbers(name, product, step.ring)

  def witnessed(self, step: Step, own: np.ndarray) -> bool:
    """Whether the products of `CrossTerms` are right where both parties open them.

    Args:
      own: this party's, all n.
    """
    name, places = step.writes[0], step.operation.witnesses()
    (share,) = self._numbers([name], step.ring)
    mine = [own[places], share[places]]
    self._connection.send(f"masked:{name}", b"".join(x.tobytes() for x in mine))
    return material.right(mine, self._received(name, mine))

  def taken(self, name: str) -> np.ndarray:
    """This party's share of a variable, as integers of the ring; it is then forgotten."""
    (share,) = self._numbers([name], self._where[name])
    self.forget(name)
    return share

  def _numbers(self, names: Sequence[str], ring: int) -> list[np.ndarray]:
    for name in names:
      self._bring(name, ring)
    return [numbers(self.share(name), ring) for name in names]

  def _received(self, name: str, like: list[np.ndarray]) -> list[np.ndarray]:
    """The other party's part of what is opened, as many integers as this party's."""
    sent, at, found = self._connection.receive(f"masked:{name}"), 0, []
    if len(sent) != sum(x.nbytes for x in like):
      raise PeerLost("it sends what is no share")
    for x in like:
      found.append(np.frombuffer(sent, x.dtype, x.size, at).reshape(x.shape))
      at += x.nbytes
    return found

  def _set_numbers(self, name: str, integers: np.ndarray, ring: int) -> None:
    like = self._rings[ring].shares(np.zeros(integers.shape, np.float32))[RANKS[self.role]]
    if self._where.get(name, ring) != ring:
      self.forget(name)
    self._set(name, of_numbers(integers, like), ring)

  def reveal_to_client(self, name: str) -> np.ndarray | None:
    """The value of a variable, at the client; None at the server, which learns nothing.

    Raises:
      PeerLost: where the server goes, or sends what is no share.
    """
    share = self.share(name)
    if self.role == SERVER:
      self._connection.send(f"reveal:{name}", packed(share))
      return None
    sent = self._connection.receive(f"reveal:{name}")
    try:
      return self._rings[self._where[name]].open([unpacked(sent), share])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
      raise PeerLost("it sends what is no share") from error

  def _take(self, name: str, sent: bytes) -> None:
    """Keeps the share that the other party sends of a variable."""
    try:
      self._set(name, unpacked(sent), WIDE)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
      raise PeerLost("it sends what is no share") from error


def _link(connection: Connection, role: str, ring: int):
  """A link of the engine for one ring, over our connection."""
  libspu = core()

  class Channel(libspu.link.IChannel):
    """What the engine asks of a transport."""

    def Send(self, key, data):
      # Its destructors send, too, and an exception there would abort the process. What is awaited raises.
      with contextlib.suppress(PeerLost):
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
