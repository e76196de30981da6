"""One of the two parties: its machine over the connection with the other."""

import numpy as np

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
    if variable.owner in RANKS:
      stand_in = np.zeros(variable.shape, variable.dtype) if value is None else value
      self._set(name, self._own(variable, stand_in, me, RANKS[variable.owner]), WIDE)
    elif value is not None:  # shared by the client
      shares = self._rings[WIDE].shares(value)
      self._connection.send(f"share:{name}", packed(shares[1 - me]))
      self._set(name, shares[me], WIDE)
    else:
      self._take(name, self._connection.receive(f"share:{name}"))

  def weigh(self, step: Step, mask: Mask, matrix: Matrix | None) -> None:
    """Runs a product with the server's weights that was prepared: see `material`.

    Args:
      mask: this party's, for these very rows.
      matrix: the weights, at the server; None at the client.

    Raises:
      PeerLost: where the other goes, or sends what is no share.
    """
    x, (name,) = step.reads[0], step.writes
    self._bring(x, WIDE)
    mine, key = numbers(self.share(x)), f"masked:{name}"
    if self.role == CLIENT:
      self._connection.send(key, (mine - mask.random).tobytes())
      product = mask.product
    else:
      sent = self._connection.receive(key)
      if len(sent) != mine.nbytes:
        raise PeerLost("it sends what is no share")
      masked = mine + np.frombuffer(sent, np.uint64).reshape(mine.shape)
      product = matrix.times(masked, step.operation.first, step.operation.end) + mask.product
    like = self._rings[WIDE].shares(np.zeros(product.shape, np.float32))[RANKS[self.role]]
    self._set(name, of_numbers(product, like), WIDE)

  def taken(self, name: str) -> np.ndarray:
    """This party's share of a variable, which is then forgotten: integers of the wide ring, uint64."""
    share = numbers(self.share(name))
    self.forget(name)
    return share

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
