"""Parties in threads of one process."""

import socket
import threading

from waiting import PATIENCE

from entropy_attn.private.parties.wire import Connection


def in_thread(work):
  """A thread that is at work, and ends with the process."""
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  return thread


def both(server_work, client_work):
  """What two threads with a connection return, or raise."""
  ends = [Connection(sock) for sock in socket.socketpair()]
  found = [None, None]

  def guarded(i, work):
    try:
      found[i] = work(ends[i])
    except Exception as error:
      found[i] = error
      ends[i].fail("the test's other party failed")

  threads = [threading.Thread(target=guarded, args=pair) for pair in enumerate((server_work, client_work))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(PATIENCE)
    assert not thread.is_alive()
  return found
