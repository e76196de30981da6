"""The door of a server: one client is let in at a time, and who waits is told how many are before it.

These are the first words on a connection, before any TLS: lines of eleven bytes, "EAp1 00002" while two are before this
one, "EAp1 enter" once it may go on, "EAp1 full " where too many wait. The client begins with "EAp1 knock", so that what
else it came to, such as a web server, answers. They tell of no prompt and no model.
"""

import collections
from collections.abc import Callable
import contextlib
import re
import socket
import threading

from entropy_attn.errors import UserError

_SIZE = 11
_KNOCK, _ENTER, _FULL = b"EAp1 knock\n", b"EAp1 enter\n", b"EAp1 full \n"
_KNOCK_SECONDS = 10.0
_NOTICE_SECONDS = 2.0
_PLACES = 16  # for those who wait
_SILENCE = 120.0  # seconds without a line: a server takes some to start a process of its own for a client


class Door:
  """Takes connections as they come, and hands out one after the other.

  Args:
    listening: the socket that they come to; closed with the door.
    places: for those who wait.
  """

  def __init__(self, listening: socket.socket, places: int = _PLACES):
    self._listening, self._places = listening, places
    self._waiting: collections.deque = collections.deque()
    self._changed = threading.Condition()
    self._served = 0
    self._closed = False
    listening.settimeout(_NOTICE_SECONDS)
    threading.Thread(target=self._take, name="door", daemon=True).start()

  def next(self) -> tuple[socket.socket, str]:
    """The next connection, once there is one, and its host:port; whoever had the one before is done with it."""
    with self._changed:
      self._served = 0
      self._changed.wait_for(lambda: self._waiting)
      sock, (host, port, *_) = self._waiting.popleft()
      self._served = 1
      self._tell()
    sock.setblocking(True)
    return sock, f"{host}:{port}"

  def close(self) -> None:
    """Lets nobody in any more."""
    with self._changed:
      self._closed = True
      for sock, _ in self._waiting:
        sock.close()
      self._waiting.clear()
      self._listening.close()

  def _take(self) -> None:
    while not self._closed:
      came = None
      with contextlib.suppress(OSError):  # none came in time, or it left at once, or the door was closed
        came = self._listening.accept()
      with self._changed:
        if came is not None:
          came[0].setblocking(False)
          if len(self._waiting) < self._places and not self._closed:
            self._waiting.append(came)
          else:
            with contextlib.suppress(OSError):
              came[0].send(_FULL)
            came[0].close()
        self._tell()
        self._changed.notify_all()

  def _tell(self) -> None:
    """Tells all who wait how many are before them, and forgets who has left."""
    staying = collections.deque()
    for sock, address in self._waiting:
      try:
        if sock.send(b"EAp1 %05d\n" % (len(staying) + self._served)) != _SIZE:
          raise BrokenPipeError
        staying.append((sock, address))
      except OSError:
        sock.close()
    self._waiting = staying


def let_in(sock: socket.socket) -> None:
  """Tells a client that it may go on.

  Raises:
    OSError: where it has left, or does not knock.
    UserError: where it is no client of ours.
  """
  sock.sendall(_ENTER)
  sock.settimeout(_KNOCK_SECONDS)
  knock = _line(sock)
  if len(knock) < _SIZE:
    raise BrokenPipeError
  if knock != _KNOCK:
    raise UserError("the client sends what is no message of this program")
  sock.settimeout(None)


def wait(sock: socket.socket, name: str, on_wait: Callable[[int], None] = lambda before: None) -> None:
  """Waits at the door of a server.

  Args:
    name: of the server, for messages.
    on_wait: called with the number of those before this one, where it changes.

  Raises:
    UserError: where it is no door of ours, too many wait, or the server goes.
  """
  sock.settimeout(_SILENCE)
  with contextlib.suppress(OSError):  # it may have said why it is closed
    sock.sendall(_KNOCK)
  last, line = 0, b""
  while line != _ENTER:
    try:
      line = _line(sock)
    except (ConnectionResetError, BrokenPipeError):  # it never read the knock
      line = b""
    except OSError as error:
      raise UserError(f"{name} does not let this client in ({error.strerror or error})") from error
    if line == _FULL:
      raise UserError(f"the server is busy, and as many wait at {name} as may: try again later")
    if not line:
      raise UserError(f"{name} ended before it let this client in")
    if line != _ENTER and not re.fullmatch(rb"EAp1 [0-9]{5}\n", line):
      raise UserError(f"what answers at {name} is no server of private inferences")
    if line != _ENTER and int(line[5:]) != last:
      last = int(line[5:])
      on_wait(last)


def _line(sock: socket.socket) -> bytes:
  """The next line, or what there is of it at the end."""
  line = b""
  while len(line) < _SIZE and (more := sock.recv(_SIZE - len(line))):
    line += more
  return line
