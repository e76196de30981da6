"""Sockets of two parties: who is let through TLS, where one may listen, and what is wrong in one line."""

import contextlib
import dataclasses
import hashlib
import pathlib
import re
import socket
import ssl
import time

from private.two_threads import in_thread
import pytest
import trustme
from waiting import PATIENCE

from entropy_attn.errors import UserError
from entropy_attn.private.parties import door, sockets
from entropy_attn.private.parties.wire import Connection


def certificates(folder):
  """The files of two parties of our authority, and of one of another."""
  files, ours = {}, trustme.CA()
  for name, authority in (("ours", ours), ("client", ours), ("foreign", trustme.CA())):
    certificate = authority.issue_cert(f"{name}.example")
    paths = [folder / f"{name}-{part}.pem" for part in ("cert", "key", "ca")]
    certificate.cert_chain_pems[0].write_to_path(paths[0])
    certificate.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    files[name] = sockets.Tls(*map(str, paths))
  return files


def meet(server_tls, client_tls):
  """Both ends' sockets, or the error of each."""
  listening = sockets.listen("127.0.0.1", 0)
  ends = {}

  def accept():
    sock, _ = listening.accept()
    door.let_in(sock)
    try:
      ends["server"] = sockets.secured(sock, server_tls, server=True, patience=PATIENCE)
    except UserError as error:
      ends["server"] = error

  thread = in_thread(accept)
  try:
    ends["client"] = sockets.connect("127.0.0.1", listening.getsockname()[1], client_tls, patience=PATIENCE)
  except UserError as error:
    ends["client"] = error
  thread.join(PATIENCE)
  listening.close()
  return ends["server"], ends["client"]


def test_mutual_tls_carries_the_same_both_ways_at_once(tmp_path):
  tls = certificates(tmp_path)["ours"]
  one, other = map(Connection, meet(tls, tls))
  payload = bytes(range(256)) * 8000
  sending = [in_thread(lambda c=c: [c.send("k", payload) for _ in range(20)]) for c in (one, other)]
  for connection in (one, other):
    for _ in range(20):
      assert connection.receive("k") == payload
  for thread in sending:
    thread.join()


def test_a_party_of_another_authority_is_refused(tmp_path):
  files = certificates(tmp_path)
  server, _ = meet(files["ours"], files["foreign"])
  assert isinstance(server, UserError) and "certificates of one authority" in str(server)
  _, client = meet(files["foreign"], files["ours"])
  assert isinstance(client, UserError) and "certificates of one authority" in str(client)


def fingerprint(tls, between=""):
  pem = pathlib.Path(tls.certificate).read_text()
  return between.join(re.findall("..", hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()))


def test_a_party_is_the_one_that_was_named_or_none(tmp_path, monkeypatch):
  monkeypatch.setattr(sockets, "PATIENCE", 0.2)  # to part in peace: here the other does not answer
  files = certificates(tmp_path)
  ours, client = files["ours"], files["client"]
  for wanted in ("ours.example", "OURS.example", fingerprint(ours), fingerprint(ours, ":").upper()):
    named = dataclasses.replace(client, peers=("other.example", wanted))
    assert sockets.who(meet(ours, named)[1]) == fingerprint(ours)
    assert not isinstance(meet(named, ours)[0], UserError)  # the server's side likewise
  for wanted in ("client.example", "example", "", fingerprint(client)):
    named = dataclasses.replace(client, peers=(wanted,))
    for error in (meet(ours, named)[1], meet(named, ours)[0]):
      assert "the other party is ours.example" in str(error) and fingerprint(ours) in str(error)


def test_a_handshake_has_an_end_however_slowly_it_is_fed(tmp_path):
  end, raw = socket.socketpair()

  def drip():
    with contextlib.suppress(OSError):
      raw.sendall(b"\x16\x03\x01\x40\x00")
      while True:
        raw.sendall(b"\x00")
        time.sleep(0.2)

  in_thread(drip)
  with pytest.raises(UserError, match="TLS with the other party failed"):
    sockets.secured(end, certificates(tmp_path)["ours"], server=True, patience=1.0)
  raw.close()


def test_this_machine_alone_is_told_from_others():
  assert all(map(sockets.is_loopback, ("127.0.0.1", "127.3.2.1", "localhost", "::1")))
  assert not any(map(sockets.is_loopback, ("0.0.0.0", "192.0.2.1", "::")))
  with pytest.raises(UserError, match="the host 'nobody.invalid' is unknown"):
    sockets.is_loopback("nobody.invalid")


def test_files_that_are_no_certificates_are_named(tmp_path):
  (tmp_path / "x.pem").write_text("no")
  with pytest.raises(UserError, match="x.pem.* cannot be used"):
    sockets.Tls(*[str(tmp_path / "x.pem")] * 3).context(server=True)


def test_an_address_of_either_kind_is_served():
  for host in ("127.0.0.1", "::1"):
    with sockets.listen(host, 0) as listening, socket.create_connection((host, listening.getsockname()[1])):
      listening.accept()[0].close()


def test_a_port_in_use_and_nobody_there_are_one_line_each():
  listening = sockets.listen("127.0.0.1", 0)
  port = listening.getsockname()[1]
  with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: .*choose another --port"):
    sockets.listen("127.0.0.1", port)
  listening.close()
  with pytest.raises(UserError, match=f"nobody answers at 127.0.0.1:{port}.*start the server first"):
    sockets.connect("127.0.0.1", port, None, patience=0.3)
