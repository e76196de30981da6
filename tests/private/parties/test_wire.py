"""Two ends of one connection: what is counted, and how every fault of the other end comes to light."""

import json
import socket
import struct
import threading
import time
import tracemalloc
import types
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from private.two_threads import in_thread
import pytest
from waiting import PATIENCE, until

from entropy_attn.private.parties import wire
from entropy_attn.private.parties.wire import Connection, Overdue, PeerEnded, PeerLost
from entropy_attn.private.parties.words import MEANING, Ending


def frame(kind, key=b"", payload=b""):
  """A message as it goes over the wire; kind: 0 control, 1 engine, 2 a beat."""
  checksum = zlib.crc32(payload, zlib.crc32(key))
  return struct.pack("!4sBHQII", b"EAp1", kind, len(key), len(payload), 0, checksum) + key + payload


def pair(**options):
  return [Connection(sock, **options) for sock in socket.socketpair()]


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
    (struct.pack("!4sBHQII", b"EAp1", 1, 1, 2**40, 0, 0), "it sends more than it was asked for"),
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


DEEP = 10_000


@pytest.mark.parametrize(
  "text",
  ["[1]", "{", '{"a":' * DEEP + "1" + "}" * DEEP, "[" * 60_000, '{"end": "\u001b[2J"}', '{"end": []}', "9" * 60_000],
)
def test_a_control_message_that_is_none_is_garbage_and_nobody_waits(text):
  raw, end = socket.socketpair()
  connection = Connection(end)
  raw.sendall(frame(0, payload=text.encode()))
  with pytest.raises(PeerLost, match="what is no message of this program"):
    connection.hear()
  started = time.monotonic()
  connection.close()  # the other does not even listen
  assert time.monotonic() - started < 20


@pytest.mark.parametrize("ending", Ending)
def test_an_ending_is_a_code_and_no_more(ending):
  end, raw = socket.socketpair()
  one = Connection(end, timeout=1e6)
  closing = in_thread(lambda: one.end(ending))
  raw.settimeout(PATIENCE)
  sent = b""
  while frame(3) not in sent:
    sent += raw.recv(4096)
  assert sent.replace(frame(2), b"") == frame(0, payload=json.dumps({"end": ending.value}).encode()) + frame(3)
  raw.close()
  closing.join(PATIENCE)
  other_end, raw = socket.socketpair()
  other = Connection(other_end)
  raw.sendall(sent)
  for wait in (other.hear, lambda: other.receive("k")):
    with pytest.raises(PeerEnded) as error:
      wait()
    assert error.value.ending is ending and str(error.value) == MEANING[ending]


def test_what_was_said_before_an_ending_is_heard():
  one, other = pair()
  one.tell({"last": 1})
  one.send("k", b"word")
  closing = in_thread(lambda: one.end(Ending.ENDED))
  until(lambda: other.lost)
  assert other.hear() == {"last": 1} and other.receive("k") == b"word"
  with pytest.raises(PeerEnded):
    other.hear()
  other.close()
  closing.join(PATIENCE)


def test_a_peer_that_only_lives_is_awaited_no_longer_than_was_said():
  end, raw = socket.socketpair()
  connection = Connection(end, timeout=PATIENCE)
  raw.sendall(frame(2) * 5)
  with pytest.raises(Overdue, match="has not said what was awaited for 1 s"):
    connection.hear(within=0.5 + 0.1)
  assert connection.lost is None  # it can still be told


def too_much(*frames, **options):
  """Why a connection is given up that these frames come over."""
  raw, end = socket.socketpair()
  connection = Connection(end, **options)
  sending = in_thread(lambda: raw.sendall(b"".join(frames)))
  until(lambda: connection.lost)
  connection.close()
  raw.close()
  sending.join(PATIENCE)
  return connection


def test_a_stranger_may_send_little():
  engine = frame(1, b"k", b"x")
  assert "more than it was asked for" in too_much(engine, unread=0).lost
  assert "more than it was asked for" in too_much(*[frame(1, b"k", bytes(1000))] * 20, unread=20_000).lost
  assert "more than it was asked for" in too_much(*[frame(1, b"%d" % i) for i in range(90)], unread=20_000).lost
  assert "more than it was asked for" in too_much(*[frame(0, payload=b"{}")] * 65).lost
  assert "no message" in too_much(frame(0, payload=b'"' + bytes(2**16) + b'"')).lost
  assert "no message" in too_much(frame(0, b"key", b"{}")).lost
  assert "no message" in too_much(frame(2, payload=b"x" * 10)).lost


def test_room_that_was_used_is_free_again_and_what_is_expected_may_come():
  one, other = pair(unread=0)
  other.expect(control=2**20, engine=5000)
  for _ in range(20):
    one.send("k", bytes(4000))
    assert other.receive("k") == bytes(4000)
  one.tell({"long": "x" * 2**17})
  assert len(other.hear()["long"]) == 2**17


def test_memory_grows_by_what_comes_and_not_by_what_is_announced():
  raw, end = socket.socketpair()
  connection = Connection(end, unread=2**40)
  tracemalloc.start()
  try:
    raw.sendall(struct.pack("!4sBHQII", b"EAp1", 1, 1, 3 * 2**30, 0, 0) + b"k" + bytes(100_000))
    heard = connection.heard
    raw.sendall(bytes(100_000))
    until(lambda: connection.heard > heard)
    assert tracemalloc.get_traced_memory()[1] < 10e6
  finally:
    tracemalloc.stop()
    raw.close()
    connection.close()


def test_closing_takes_no_longer_than_the_timeout_where_nobody_reads():
  end, raw = socket.socketpair()
  connection = Connection(end, timeout=1.0)
  connection.send("k", bytes(10_000_000))
  started = time.monotonic()
  connection.close()
  assert time.monotonic() - started < 20
  raw.close()
