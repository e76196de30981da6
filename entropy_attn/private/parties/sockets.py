"""Connected sockets of two parties, with mutual TLS where asked for."""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import ipaddress
import re
import socket
import ssl
import threading
import time

from entropy_attn.errors import UserError, printable
from entropy_attn.private.parties import door
from entropy_attn.private.parties.wire import Connection
from entropy_attn.private.parties.words import Ending

PATIENCE = 10.0  # seconds
HANDSHAKE = 30.0  # seconds, however the other party spreads its words over them
_CHUNK = 2**18


@dataclasses.dataclass(frozen=True)
class Tls:
  """Files of mutual TLS: this party's certificate and key, and the authority that signed the other's.

  Attributes:
    peers: names, or SHA-256 fingerprints, of the certificates that the other party may have; empty: whatever the
      authority signed, so that each of its clients may pose as the server.
  """

  certificate: str
  key: str
  authority: str
  peers: tuple[str, ...] = ()

  def context(self, *, server: bool) -> ssl.SSLContext:
    """What Python's TLS needs to know, at the server or at the client.

    Raises:
      UserError: if a file cannot be used.
    """
    try:
      context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
      context.minimum_version = ssl.TLSVersion.TLSv1_3
      context.check_hostname = False  # names are looked at in `check_peer`: what is typed need not be one
      context.verify_mode = ssl.CERT_REQUIRED
      context.load_verify_locations(self.authority)
      context.load_cert_chain(self.certificate, self.key)
    except (OSError, ssl.SSLError) as error:
      raise UserError(f"TLS: {self.certificate}, {self.key} or {self.authority} cannot be used: {error}") from error
    return context

  def check_peer(self, sock: "TlsSocket") -> None:
    """Raises UserError unless the other party's certificate is of one of `peers`."""
    names, fingerprint = sock.identity()
    wanted = {re.sub("[: ]", "", peer).lower() if is_fingerprint(peer) else peer.lower() for peer in self.peers}
    if wanted and not wanted & {fingerprint, *(name.lower() for name in names)}:
      who = printable(", ".join(names) or "without a name", 200)
      raise UserError(f"TLS: the other party is {who} (SHA-256 {fingerprint}), which --tls_peer does not name")


def is_fingerprint(text: str) -> bool:
  """Whether a text is the SHA-256 of a certificate: 64 hexadecimal digits, with colons or without."""
  return re.fullmatch("[0-9a-fA-F]{64}", re.sub("[: ]", "", text)) is not None


class TlsSocket:
  """A socket's sendall, recv_into and ends through TLS.

  One thread may receive while another sends: OpenSSL works on buffers in memory, under a lock, and not on the socket.
  """

  def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server: bool, patience: float = HANDSHAKE):
    until = time.monotonic() + patience
    self._sock, self._in, self._out = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
    self._tls = context.wrap_bio(self._in, self._out, server_side=server)
    self._lock, self._sending = threading.Lock(), threading.Lock()
    while True:
      try:
        self._tls.do_handshake()
        break
      except ssl.SSLWantReadError:
        left = until - time.monotonic()
        if left <= 0:
          raise TimeoutError(f"it took more than {patience:.0f} s") from None
        sock.settimeout(left)
        self._flush()
        self._fill()
      except ssl.SSLError:
        with contextlib.suppress(OSError):  # the alert says to the other why
          self._flush()
        raise
    self._flush()

  def identity(self) -> tuple[list[str], str]:
    """The names in the other party's certificate, and its SHA-256 in hexadecimal."""
    known = self._tls.getpeercert()
    names = [value for _, value in known.get("subjectAltName", ())]
    names += [value for part in known.get("subject", ()) for name, value in part if name == "commonName"]
    return names, hashlib.sha256(self._tls.getpeercert(binary_form=True)).hexdigest()

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
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
  except OSError as error:
    raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error


def is_address(text: str) -> bool:
  """Whether a text is an IP address."""
  try:
    ipaddress.ip_address(text)
  except ValueError:
    return False
  return True


def is_loopback(host: str) -> bool:
  """Whether a host is this machine alone.

  Raises:
    UserError: where it is unknown.
  """
  try:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError) as error:
    raise UserError(f"the host {host!r} is unknown ({getattr(error, 'strerror', None) or error})") from error
  return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for *_, address in found)


def connect(
  host: str,
  port: int,
  tls: Tls | None,
  *,
  patience: float = PATIENCE,
  on_wait: Callable[[int], None] = lambda before: None,
) -> socket.socket | TlsSocket:
  """A socket connected to a listening party, which may still be starting, once that lets this one in.

  Args:
    patience: seconds in which somebody must answer.
    on_wait: called with the number of those that are served before this one, where it changes.

  Raises:
    UserError: if there is none within `patience` seconds, or it is no party of ours, or too many wait.
  """
  name, started = f"{host}:{port}", time.monotonic()
  while True:
    try:
      sock = socket.create_connection((host, port), timeout=patience)
      break
    except OSError as error:
      if time.monotonic() - started > patience:
        raise UserError(f"nobody answers at {name} ({error.strerror or error}): start the server first") from error
      time.sleep(0.2)
  try:
    door.wait(sock, name, on_wait)
  except BaseException:
    sock.close()
    raise
  return secured(sock, tls, server=False)


def who(sock: socket.socket | TlsSocket) -> str:
  """By what the other party is known again: its certificate's SHA-256, or without TLS its address."""
  return sock.identity()[1] if isinstance(sock, TlsSocket) else sock.getpeername()[0]


def secured(
  sock: socket.socket, tls: Tls | None, *, server: bool, patience: float = HANDSHAKE
) -> socket.socket | TlsSocket:
  """The socket itself, or TLS over it.

  Args:
    server: whether this is the server's side.
    patience: seconds that the other party may take to prove who it is.

  Raises:
    UserError: if the other party does not prove who it is.
  """
  if tls is None:
    return sock
  context = tls.context(server=server)
  try:
    secure = TlsSocket(sock, context, server=server, patience=patience)
  except (OSError, ssl.SSLError) as error:
    with contextlib.suppress(OSError):
      sock.close()
    raise UserError(f"TLS with the other party failed ({error}): do both use certificates of one authority?") from error
  try:
    tls.check_peer(secure)
  except UserError:
    Connection(secure, timeout=PATIENCE, unread=0).end(Ending.CERTIFICATE)
    raise
  return secure
