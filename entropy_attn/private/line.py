"""Flags of the line to the other party: who that must be, and what may go without TLS."""

import dataclasses
import re
import socket
import sys

from absl import flags as absl_flags

from entropy_attn import cli
from entropy_attn.errors import UserError
from entropy_attn.private import flags
from entropy_attn.private.parties import sockets
from entropy_attn.private.parties.sockets import Tls

FLAGS = absl_flags.FLAGS


def define() -> None:
  """Defines the flags of `flags.define_party`, and --tls_peer and --insecure, for `party`."""
  flags.define_party()
  absl_flags.DEFINE_list(
    "tls_peer",
    [],
    "Names, or SHA-256 fingerprints, of certificates that the other party may have; default: any that --tls_ca signed.",
  )
  absl_flags.DEFINE_bool(
    "insecure", False, "Let others on the line read what is said: without TLS beyond this machine."
  )
  cli.add_check(_check_peer)


def define_server() -> None:
  """Defines --server, for `connect`."""
  absl_flags.DEFINE_string("server", "127.0.0.1:9700", "host:port of private.serve.")
  cli.add_check(lambda: check_host("server", _address()[0]))


def connect(tls: Tls | None) -> socket.socket | sockets.TlsSocket:
  """A socket connected to --server, once this client's turn has come.

  Raises:
    UserError: where it cannot be reached, or is none of ours.
  """
  return sockets.connect(*_address(), tls, on_wait=_say_busy)


def _say_busy(before: int) -> None:
  print(f"the server is busy, {before} before this one", file=sys.stderr, flush=True)


def _address() -> tuple[str, int]:
  host, _, port = FLAGS.server.rpartition(":")
  if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
    raise UserError(f"--server={FLAGS.server!r} has not the form host:port")
  return host.strip("[]"), int(port)


def _check_peer() -> None:
  if FLAGS.tls_peer and FLAGS.tls_cert is None:
    raise UserError("--tls_peer needs TLS: --tls_cert, --tls_key and --tls_ca")
  for peer in FLAGS.tls_peer:
    if ":" in peer and not sockets.is_fingerprint(peer) and not sockets.is_address(peer):
      raise UserError(f"--tls_peer={peer} is neither a name nor a SHA-256 of 64 hexadecimal digits")


def party(*, server: bool) -> tuple[Tls | None, float, int]:
  """TLS or None, the timeout in seconds, and the threads of this party.

  Raises:
    UserError: where only a part of TLS is given, or a file of it cannot be used.
  """
  tls, timeout, threads = flags.party()
  if tls is not None:
    tls = dataclasses.replace(tls, peers=tuple(FLAGS.tls_peer))
    tls.context(server=server)  # so that a wrong file is known now, and not at the first client
  return tls, timeout, threads


def check_host(flag: str, host: str) -> None:
  """Raises UserError where what is said would leave this machine without TLS, unless --insecure allows it.

  A host that is unknown is refused as well.
  """
  if FLAGS.tls_cert is None and not FLAGS.insecure and not sockets.is_loopback(host):
    raise UserError(
      f"--{flag}: {host} is not this machine alone, and without TLS others on the line read what both parties know: "
      "give --tls_cert, --tls_key and --tls_ca, or --insecure"
    )
