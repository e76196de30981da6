"""Connected sockets of two parties, with mutual TLS where asked for."""

import contextlib
import dataclasses
import socket
import ssl
import threading
import time

from entropy_attn.errors import UserError

PATIENCE = 10.0  # seconds
_CHUNK = 2**18


@dataclasses.dataclass(frozen=True)
class Tls:
  """Files of mutual TLS: this party's certificate and key, and the authority that signed the other's."""

  certificate: str
  key: str
  authority: str

  def context(self, *, server: bool) -> ssl.SSLContext:
    """What Python's TLS needs to know, at the server or at the client.

    Raises:
      UserError: if a file cannot be used.
    """
    try:
      context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
      context.minimum_version = ssl.TLSVersion.TLSv1_3
      context.check_hostname = False  # the authority, not a name, says who may take part
      context.verify_mode = ssl.CERT_REQUIRED
      context.load_verify_locations(self.authority)
      context.load_cert_chain(self.certificate, self.key)
    except (OSError, ssl.SSLError) as error:
      raise UserError(f"TLS: {self.certificate}, {self.key} or {self.authority} cannot be used: {error}") from error
    return context


class TlsSocket:
  """A socket's sendall, recv_into and ends through TLS.

  One thread may receive while another sends: OpenSSL works on buffers in memory, under a lock, and not on the socket.
  """

  def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server: bool):
    self._sock, self._in, self._out = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
    self._tls = context.wrap_bio(self._in, self._out, server_side=server)
    self._lock, self._sending = threading.Lock(), threading.Lock()
    while True:
      try:
        self._tls.do_handshake()
        break
      except ssl.SSLWantReadError:
        self._flush()
        self._fill()
    self._flush()

  def sendall(self, data) -> None:
    """Sends all of some bytes."""
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
      with self._lock:
        self._tls.write(view[start : start + _CHUNK])
      self._flush()

  def recv_into(self, view) -> int:
    """Fills a part of `view`, and says how many bytes; 0 at the end."""
    while True:
      try:
        with self._lock:
          return self._tls.read(len(view), view)
      except ssl.SSLWantReadError:
        # Nothing is flushed here: two parties that send at once would each wait for the other to receive.
        if not self._fill():
          return 0
      except ssl.SSLZeroReturnError:
        return 0

  def settimeout(self, seconds: float | None) -> None:
    """Sets how long a call may wait, in seconds; None: for ever."""
    self._sock.settimeout(seconds)

  def setsockopt(self, *options) -> None:
    """Sets an option of the socket below."""
    self._sock.setsockopt(*options)

  def shutdown(self, how: int) -> None:
    """Ends one direction of the socket below, or both."""
    self._sock.shutdown(how)

  def close(self) -> None:
    """Closes the socket below."""
    self._sock.close()

  def _fill(self) -> bool:
    """Takes what the socket brings; whether it goes on."""
    data = self._sock.recv(_CHUNK)
    with self._lock:
      self._in.write(data) if data else self._in.write_eof()
    return bool(data)

  def _flush(self) -> None:
    with self._sending:  # records must leave in their order
      with self._lock:
        data = self._out.read()
      if data:
        self._sock.sendall(data)


def listen(host: str, port: int) -> socket.socket:
  """A listening TCP socket; port 0: one that is free.

  Raises:
    UserError: where the port is in use or not allowed.
  """
  try:
    return socket.create_server((host, port))
  except OSError as error:
    raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


def connect(host: str, port: int, tls: Tls | None, *, patience: float = PATIENCE) -> socket.socket | TlsSocket:
  """A socket connected to a listening party, which may still be starting.

  Raises:
    UserError: if there is none within `patience` seconds, or it is no party of ours.
  """
  name, started = f"{host}:{port}", time.monotonic()
  while True:
    try:
      sock = socket.create_connection((host, port), timeout=patience)
      return secured(sock, tls, server=False, patience=patience)
    except OSError as error:
      if time.monotonic() - started > patience:
        raise UserError(f"nobody answers at {name} ({error.strerror or error}): start the server first") from error
      time.sleep(0.2)


def secured(
  sock: socket.socket, tls: Tls | None, *, server: bool, patience: float = PATIENCE
) -> socket.socket | TlsSocket:
  """The socket itself, or TLS over it.

  Args:
    server: whether this is the server's side.
    patience: seconds that the other party may be silent while it proves who it is.

  Raises:
    UserError: if the other party does not prove who it is.
  """
  if tls is None:
    return sock
  context = tls.context(server=server)
  try:
    sock.settimeout(patience)
    return TlsSocket(sock, context, server=server)
  except (OSError, ssl.SSLError) as error:
    with contextlib.suppress(OSError):
      sock.close()
    raise UserError(f"TLS with the other party failed ({error}): do both use certificates of one authority?") from error
