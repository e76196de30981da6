"""The first words of two parties: who they are, whether they have the same code, and what the server offers."""

from collections.abc import Mapping
import functools
import hashlib
import os
import pathlib

from entropy_attn.errors import printable
from entropy_attn.private.parties import engine
from entropy_attn.private.parties.wire import Connection, PeerLost
from entropy_attn.private.parties.words import Disagreement, Ending
from entropy_attn.private.program.types import CLIENT, SERVER

# Of a party that does not say how many. Each thread makes keys of its own, before the first token: 3.5 MB, and as many
# seconds on two cores. What takes nine tenths of the time, the server's homomorphic products, runs in few of them.
MOST_THREADS = 8
_OFFER_BYTES = 2**26  # a tokenizer of 250,000 entries has 20 MB


def greet(
  connection: Connection,
  role: str,
  offer: Mapping | None = None,
  threads: int = 0,
  *,
  within: float | None = None,
) -> dict:
  """Both parties' first words; then the server tells what it offers.

  Args:
    offer: at the server: for the client to read.
    threads: of this party; 0: as many as it has cores, MOST_THREADS at most.
    within: seconds in which the other must speak; None: the connection's patience.

  Returns:
    The other's words: at the client with the offer. 'threads' is the lesser of both.

  Raises:
    Disagreement: where versions differ, or the other is not the other role.
    PeerLost: where it is no party of ours, or says nothing.
  """
  threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
  mine = {"code": code_digest(), "engine": engine.version(), "role": role, "threads": threads}
  connection.tell(mine)
  theirs = connection.hear(within)
  for name, what in (("code", "the sources of entropy_attn"), ("engine", "the engine")):
    if theirs.get(name) != mine[name]:
      said = printable(str(theirs.get(name)), 16)
      raise Disagreement(
        f"the other party has {what} {said}, this one {mine[name][:16]}: install the same", Ending.VERSION
      )
  if theirs.get("role") != (CLIENT if role == SERVER else SERVER):
    said = printable(str(theirs.get("role")), 16)
    raise Disagreement(f"the other party is a {said} too: one serves, the other generates", Ending.ROLE)
  if type(theirs.get("threads")) is not int or theirs["threads"] < 1:
    raise PeerLost("it does not say how many threads it has")
  if role == CLIENT:  # asked for only now: until here no large message is expected
    connection.expect(control=_OFFER_BYTES)
    connection.tell({"offer": True})
    theirs |= connection.hear(within)
  elif connection.hear(within).get("offer") is not True:
    raise PeerLost("it does not ask what is offered")
  else:
    connection.tell(dict(offer or {}))
  return theirs | {"threads": min(threads, theirs["threads"])}


@functools.cache
def code_digest(package: pathlib.Path = pathlib.Path(__file__).parents[2]) -> str:
  """The SHA-256, in hexadecimal, of the package's sources, wherever they are installed."""
  digest = hashlib.sha256()
  for path in sorted(sources(package)):
    name, content = path.relative_to(package).as_posix().encode(), path.read_bytes()
    digest.update(b"%d %s %d " % (len(name), name, len(content)))
    digest.update(content)
  return digest.hexdigest()


def sources(package: pathlib.Path) -> list[pathlib.Path]:
  """The files that say what the package does, of those that an installation has: its code, and constants in JSON."""
  return [*package.rglob("*.py"), *(package / "private").rglob("*.json")]
