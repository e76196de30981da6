"""One of the two parties: its machine over the connection with the other."""

import numpy as np

from entropy_attn.private.parties.engine import RANKS, core
from entropy_attn.private.parties.machine import Machine
from entropy_attn.private.parties.shares import Ring, packed, unpacked
from entropy_attn.private.parties.wire import Connection, PeerLost
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import NARROW, SERVER, WIDE, Variable


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
    wide, me = self._rings[WIDE], RANKS[self.role]
    if variable.owner in RANKS:
      stand_in = np.zeros(variable.shape, variable.dtype) if value is None else value
      self._set(name, wide.shares(stand_in, RANKS[variable.owner])[me], WIDE)
    elif value is not None:  # shared by the client
      shares = wide.shares(value)
      self._connection.send(f"share:{name}", packed(shares[1 - me]))
      self._set(name, shares[me], WIDE)
    else:
      self._take(name, self._connection.receive(f"share:{name}"))

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
