"""Of two processes that work together one fails, and the line that is printed says which, and why."""

import multiprocessing
import os
import signal

import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.parties import pair
from entropy_attn.private.parties.wire import PeerLost
from entropy_attn.private.program.types import CLIENT, SERVER


def loses():
  raise PeerLost("it ended without a word")


def is_killed():
  os.kill(os.getpid(), signal.SIGKILL)


def works():
  return "its result"


def leaves():
  os._exit(3)


def collected(**work):
  fork, running = multiprocessing.get_context("fork"), {}
  for role, do in work.items():
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=pair._child, args=(sender, do, ()), daemon=True)
    process.start()
    sender.close()
    running[role] = (process, receiver)
  return pair._collected(running)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_each_result_is_its_roles():
  assert collected(**{SERVER: works, CLIENT: works}) == {SERVER: "its result", CLIENT: "its result"}


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("other", [works, loses])
def test_a_party_that_the_system_kills_is_named_and_not_the_one_that_lost_it(other):
  with pytest.raises(UserError, match=f"the {SERVER}'s process failed: the system killed it, as .* memory is full"):
    collected(**{SERVER: is_killed, CLIENT: other})


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_party_that_leaves_is_named_with_its_exit_code():
  with pytest.raises(UserError, match=rf"the {SERVER}'s process failed: it ended without a word \(exit code 3\)"):
    collected(**{SERVER: leaves, CLIENT: works})
