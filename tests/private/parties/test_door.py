"""Who is let in when, and what those who wait are told."""

import http.server
import socket
import threading

import pytest
from waiting import PATIENCE, until

from entropy_attn.errors import UserError
from entropy_attn.private.parties import door, sockets


@pytest.fixture
def listening():
  return sockets.listen("127.0.0.1", 0)


def knock(listening):
  """A client at the door: what it was told, and its thread."""
  told = []
  sock = socket.create_connection(listening.getsockname())

  def wait():
    try:
      door.wait(sock, "here", told.append)
      told.append("in")
    except UserError as error:
      told.append(str(error))

  thread = threading.Thread(target=wait, daemon=True)
  thread.start()
  return told, sock


def test_one_after_the_other_and_who_waits_knows_how_many_are_before(listening):
  entrance = door.Door(listening)
  first, _ = knock(listening)
  served, _ = entrance.next()
  second, _ = knock(listening)
  until(lambda: second == [1])
  third, gone = knock(listening)
  until(lambda: third == [2])
  fourth, _ = knock(listening)
  until(lambda: fourth == [3])
  door.let_in(served)
  until(lambda: first == ["in"])
  gone.shutdown(socket.SHUT_RDWR)
  gone.close()
  until(lambda: fourth == [3, 2])  # who left is not counted
  served, name = entrance.next()
  until(lambda: fourth == [3, 2, 1])
  assert name.startswith("127.0.0.1:") and second == [1]
  door.let_in(served)
  until(lambda: second == [1, "in"])
  entrance.close()
  until(lambda: "here ended before it let this client in" in fourth)


def test_too_many_are_sent_away(listening):
  entrance = door.Door(listening, places=1)
  waiting, _ = knock(listening)
  until(lambda: entrance._waiting)
  more, _ = knock(listening)
  until(lambda: more)
  assert "the server is busy, and as many wait at here as may: try again later" in more[0] and not waiting
  entrance.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n", b"EAp1 -0001\n", b"\x1b[2J\x1b[2J\x1b[2J"])
def test_another_door_is_no_door_of_ours(said):
  one, other = socket.socketpair()
  other.sendall(said)
  with pytest.raises(UserError, match="what answers at here is no server of private inferences"):
    door.wait(one, "here")


def test_a_web_server_is_no_door_of_ours():
  with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
    threading.Thread(target=web.handle_request, daemon=True).start()
    with pytest.raises(UserError, match="what answers at .* is no server of private inferences"):
      sockets.connect(*web.server_address, None)


@pytest.mark.parametrize("said,error", [(b"GET / HTTP/1.1\r\n\r\n", UserError), (b"EAp1", OSError)])
def test_a_stranger_is_not_let_in(said, error):
  one, other = socket.socketpair()
  other.sendall(said)
  other.shutdown(socket.SHUT_WR)
  with pytest.raises(error):
    door.let_in(one)


def test_a_silent_door_is_left(monkeypatch):
  monkeypatch.setattr(door, "_SILENCE", 0.3)
  one, _other = socket.socketpair()
  with pytest.raises(UserError, match="here does not let this client in"):
    door.wait(one, "here")


def test_next_waits_for_the_first(listening):
  entrance, found = door.Door(listening), []
  thread = threading.Thread(target=lambda: found.append(entrance.next()), daemon=True)
  thread.start()
  knock(listening)
  thread.join(PATIENCE)
  assert found
  entrance.close()
