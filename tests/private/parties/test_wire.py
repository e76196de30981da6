"""Two ends of one connection: what is counted, and how every fault of the other end comes to light."""

import json
import socket
import struct
import threading
import time
import types
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import trustme
from waiting import PATIENCE, until

from entropy_attn.errors import UserError
from entropy_attn.private.parties import sockets, wire
from entropy_attn.private.parties.wire import Connection, PeerLost


def frame(kind, key=b"", payload=b""):
  """A message as it goes over the wire; kind: 0 control, 1 engine, 2 a beat."""
  checksum = zlib.crc32(payload, zlib.crc32(key))
  return struct.pack("!4sBHQII", b"EAp1", kind, len(key), len(payload), 0, checksum) + key + payload


def pair(**options):
  return [Connection(sock, **options) for sock in socket.socketpair()]


def in_thread(work):
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  return thread


@settings(max_examples=30, deadline=None)
@given(messages=st.lists(st.tuples(st.sampled_from(["a:1", "b:1"]), st.binary(max_size=5000)), max_size=12))
def test_messages_arrive_whole_under_their_keys_in_order_and_are_counted(messages):
  one, other = pair()
  for key, payload in messages:
    one.send(key, payload)
  for key in ("a:1", "b:1"):
    for payload in [payload for k, payload in messages if k == key]:
      assert other.receive(key) == payload
  one.tell({"ü": [1, None]})
  assert other.hear() == {"ü": [1, None]}
  size = sum(len(payload) for _, payload in messages)
  assert (one.counts().sent, other.counts().received) == (size, size)
  assert (one.counts().sent_messages, other.counts().received_messages) == (len(messages), len(messages))
  closing = in_thread(one.close)
  other.close()
  closing.join(PATIENCE)
  assert not closing.is_alive()


def ping_pong(one, other, rounds):
  def answer():
    other.counts()
    for _ in range(rounds):
      other.send("l:back", other.receive("l:forth"))

  one.counts()
  thread = in_thread(answer)
  for _ in range(rounds):
    one.send("l:forth", b"x")
    one.receive("l:back")
  thread.join()


def test_a_round_is_there_and_back_and_a_burst_is_one():
  one, other = pair()
  ping_pong(one, other, 5)
  assert one.counts().chain / 2 == 5
  for _ in range(7):
    one.send("l:burst", b"x")
  for _ in range(7):
    other.receive("l:burst")
  other.send("l:done", b"")
  one.receive("l:done")
  assert one.counts().chain / 2 == 6


def test_threads_side_by_side_are_not_rounds_of_each_other():
  one, other = pair()
  one.counts(), other.counts()

  def echo(link):
    for i in range(4):
      other.send(f"{link}:back{i}", other.receive(f"{link}:forth{i}"))

  def ask(link):
    for i in range(4):
      one.send(f"{link}:forth{i}", b"")
      one.receive(f"{link}:back{i}")

  answering = in_thread(lambda: echo("side"))
  asking = in_thread(lambda: ask("side"))
  main_echo = in_thread(lambda: echo("main"))
  ask("main")
  for thread in (answering, asking, main_echo):
    thread.join()
  assert one.counts().chain / 2 == 4


def test_an_imitated_line_takes_its_time():
  one, other = pair(rtt=0.1)
  started = time.monotonic()
  ping_pong(one, other, 3)
  assert time.monotonic() - started >= 0.3
  one, other = pair(bandwidth=1e6)
  started = time.monotonic()
  one.send("k", bytes(300_000))
  other.receive("k")
  assert time.monotonic() - started >= 0.3


def test_an_end_without_a_word_wakes_all_who_wait():
  end, raw = socket.socketpair()
  one, told, waiting = Connection(end), [], threading.Event()

  def wait():
    waiting.set()
    try:
      one.receive("never")
    except PeerLost as lost:
      told.append(str(lost))

  thread = in_thread(wait)
  assert waiting.wait(PATIENCE)
  raw.shutdown(socket.SHUT_RDWR)
  thread.join(PATIENCE)
  assert told == ["it ended without a word"]
  with pytest.raises(PeerLost, match="it ended without a word"):
    one.hear()
  with pytest.raises(PeerLost):
    one.send("k", b"")


def test_a_connection_beats_by_itself():
  end, raw = socket.socketpair()
  Connection(end, timeout=4.0)
  raw.settimeout(PATIENCE)
  for _ in range(3):
    assert raw.recv(len(frame(2)), socket.MSG_WAITALL) == frame(2)


def test_a_beat_is_a_sign_of_life_and_silence_for_longer_than_the_timeout_is_a_loss(monkeypatch):
  """By a clock of the test's own, which goes on only when what it waits for has come."""
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(
    wire, "time", types.SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: time.sleep(0.01))
  )
  end, raw = socket.socketpair()
  alone = Connection(end, timeout=30.0)
  for now in (25.0, 50.0, 75.0):  # no two of them without a beat between are within the timeout
    clock.now = now
    raw.sendall(frame(2))
    until(lambda now=now: alone.heard == now)
  assert alone.lost is None
  clock.now += 31.0
  with pytest.raises(PeerLost, match="no sign of life for 30 s"):
    alone.receive("k")
  raw.close()


def test_silence_is_noticed_long_before_a_computation_would_be_given_up():
  end, raw = socket.socketpair()
  started = time.monotonic()
  with pytest.raises(PeerLost, match="no sign of life for 1 s"):
    Connection(end, timeout=1.0).receive("k")
  assert time.monotonic() - started < PATIENCE  # its patience is 900 s
  raw.close()


def test_a_party_that_lives_but_computes_nothing_is_given_up():
  ends = socket.socketpair()
  one, other = Connection(ends[0], timeout=PATIENCE, patience=1.0), Connection(ends[1], timeout=PATIENCE)
  started = time.monotonic()
  with pytest.raises(PeerLost, match="it lives, but has computed nothing for 1 s"):
    one.receive("l:never")
  assert 0.9 < time.monotonic() - started < PATIENCE
  assert "ended" in wait_lost(other)


def wait_lost(connection):
  try:
    return connection.receive("l:never")
  except PeerLost as lost:
    return str(lost)


GOOD = struct.pack("!4sBHQII", b"EAp1", 1, 1, 3, 0, 0)  # but for its checksum


@pytest.mark.parametrize(
  "bytes_,reason",
  [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "what is no message of this program"),
    (GOOD + b"kabc", "a message arrived damaged"),
    (struct.pack("!4sBHQII", b"EAp1", 1, 1, 2**40, 0, 0), "what is no message of this program"),
    (struct.pack("!4sBHQII", b"EAp1", 9, 0, 0, 0, 0), "what is no message of this program"),
    (GOOD[:7], "it ended without a word"),
  ],
)
def test_garbage_is_named(bytes_, reason):
  raw, end = socket.socketpair()
  connection = Connection(end)
  raw.sendall(bytes_)
  raw.shutdown(socket.SHUT_WR)
  with pytest.raises(PeerLost, match=reason):
    connection.receive("k")


def test_a_control_message_that_is_no_object_is_garbage_and_a_failure_is_passed_on():
  for text, reason in (("[1]", "no message"), ("{", "no message"), (json.dumps({"failed": "no"}), "it gave up: no")):
    raw, end = socket.socketpair()
    connection = Connection(end)
    raw.sendall(frame(0, payload=text.encode()))
    with pytest.raises(PeerLost, match=reason):
      connection.hear()


def certificates(folder):
  """Two authorities, and the files of a party of each."""
  files = {}
  for name in ("ours", "foreign"):
    authority = trustme.CA()
    certificate = authority.issue_cert("party.example")
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


def test_files_that_are_no_certificates_are_named(tmp_path):
  (tmp_path / "x.pem").write_text("no")
  with pytest.raises(UserError, match="x.pem.* cannot be used"):
    sockets.Tls(*[str(tmp_path / "x.pem")] * 3).context(server=True)


def test_a_port_in_use_and_nobody_there_are_one_line_each():
  listening = sockets.listen("127.0.0.1", 0)
  port = listening.getsockname()[1]
  with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: .*choose another --port"):
    sockets.listen("127.0.0.1", port)
  listening.close()
  with pytest.raises(UserError, match=f"nobody answers at 127.0.0.1:{port}.*start the server first"):
    sockets.connect("127.0.0.1", port, None, patience=0.3)
