"""The first words of two parties, and what one is told of why the other ends."""

import pathlib
import shutil
import socket
import threading
import tomllib

from private.commands import needs_engine
from private.two_threads import both
import pytest
from waiting import PATIENCE

import entropy_attn
from entropy_attn.errors import UserError
from entropy_attn.private.parties import engine, greeting, pair
from entropy_attn.private.parties.check import Impossible
from entropy_attn.private.parties.wire import Connection, Overdue, PeerEnded
from entropy_attn.private.parties.words import Disagreement, Ending
from entropy_attn.private.program.types import CLIENT, SERVER

pytestmark = needs_engine


@pytest.mark.parametrize(
  "error,ending",
  [
    (Impossible(3, "tokens 17,4"), Ending.ENDED),
    (UserError("token 17 is out of range"), Ending.ENDED),
    (ValueError("17"), Ending.ENDED),
    (KeyboardInterrupt(), Ending.ENDED),
    (Overdue("17"), Ending.LATE),
    (Disagreement("17", Ending.VERSION), Ending.VERSION),
  ],
)
def test_the_other_party_learns_of_a_failure_a_code_alone(error, ending):
  told = []

  class Telling(Connection):
    def tell(self, message):
      told.append(message)
      super().tell(message)

  ends = socket.socketpair()
  hearing, failing = Connection(ends[0]), Telling(ends[1])
  closing = threading.Thread(target=hearing.close)
  with pytest.raises(type(error)), pair.watched(failing, SERVER):
    closing.start()
    raise error
  closing.join(PATIENCE)
  assert told == [{"end": ending.value}]
  with pytest.raises(PeerEnded) as lost:
    hearing.hear()
  assert lost.value.ending is ending and "17" not in str(lost.value)


def test_greetings_tell_versions_and_roles_apart():
  long = "x" * 2**17  # more than a stranger may say
  served, asked = both(
    lambda c: greeting.greet(c, SERVER, {"spec": long}, threads=3), lambda c: greeting.greet(c, CLIENT, threads=2)
  )
  assert asked["spec"] == long and served["threads"] == asked["threads"] == 2
  assert set(served) == {"code", "engine", "role", "threads"}  # all that a server is told
  first, second = both(lambda c: greeting.greet(c, CLIENT), lambda c: greeting.greet(c, CLIENT))
  assert "a client too: one serves, the other generates" in str(first) + str(second)
  same = {"code": greeting.code_digest(), "engine": engine.version(), "role": CLIENT, "threads": 1}
  for words, reason in (
    (same | {"engine": "0.1"}, "the other party has the engine 0.1"),
    (same | {"engine": "\x1b[2J" + "9" * 999}, r"the engine \x1b[2J"),
    (same | {"code": "0" * 64}, "the sources of entropy_attn 0000000000000000"),
    ({}, "install the same"),
    (same | {"threads": True}, "how many threads"),
    (same | {"role": ["client"]}, "one serves, the other generates"),
  ):
    served, _ = both(lambda c: greeting.greet(c, SERVER), lambda c, words=words: c.tell(words))
    assert reason in str(served) and "\x1b" not in str(served) and len(str(served)) < 200


def test_threads_that_nobody_asked_for_are_few(monkeypatch):
  monkeypatch.setattr(greeting.os, "sched_getaffinity", lambda _: range(32))
  served, asked = both(lambda c: greeting.greet(c, SERVER), lambda c: greeting.greet(c, CLIENT, threads=16))
  assert served["threads"] == asked["threads"] == 8


def test_a_server_waits_for_a_greeting_no_longer_than_it_said():
  served, _ = both(lambda c: greeting.greet(c, SERVER, within=0.5), lambda c: c.hear() and c.hear())
  assert isinstance(served, Overdue)


def test_sources_are_the_same_wherever_they_are_and_an_edit_makes_others(tmp_path):
  here = pathlib.Path(entropy_attn.__file__).parent
  there = shutil.copytree(here, tmp_path / "site-packages" / "entropy_attn")
  shutil.copytree(here.with_name("configs"), there / "configs")  # where an installation has them
  assert greeting.code_digest(there) == greeting.code_digest()
  for name in ("private/program/build.py", "attention.py", "private/price/protocols.json"):
    edited = tmp_path / name.replace("/", "_")
    shutil.copytree(here, edited)
    (edited / name).write_bytes((edited / name).read_bytes() + b" ")
    assert greeting.code_digest(edited) != greeting.code_digest()


def test_what_is_hashed_is_what_is_installed():
  root = pathlib.Path(entropy_attn.__file__).parents[1]
  declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
  installed = {path for name in declared["packages"] if not name.startswith("entropy_attn.configs")
               for path in (root / name.replace(".", "/")).glob("*.py")}  # fmt: skip
  computing = {name: patterns for name, patterns in declared["package-data"].items() if ".private." in name}
  for name, patterns in computing.items():  # what a page looks like is nothing that two parties must agree upon
    installed |= {path for pattern in patterns for path in (root / name.replace(".", "/")).glob(pattern)}
  assert set(greeting.sources(root / "entropy_attn")) == installed
