"""Two parties that meet: their first words, the watch on each other, and both of them on this machine."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import socket
import sys
import threading

import numpy as np

from entropy_attn.errors import UserError, printable
from entropy_attn.private.parties import check
from entropy_attn.private.parties.bar import Steps
from entropy_attn.private.parties.check import Impossible
from entropy_attn.private.parties.greeting import greet
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.sockets import TlsSocket
from entropy_attn.private.parties.unnamed import Unnamed
from entropy_attn.private.parties.wire import Connection, Overdue, PeerLost
from entropy_attn.private.parties.words import Disagreement, Ending
from entropy_attn.private.program.spec import Spec
from entropy_attn.private.program.types import CLIENT, SERVER, Step
from entropy_attn.private.program.weights import Model

# Seconds until two processes of this machine give each other up: where one ends, the other knows at once, and a busy
# machine is no loss.
LOCAL_TIMEOUT = 600.0
_KILLED = "the system killed it, as it does where memory is full: private.cost says how much a model takes"
GRACE = 15.0  # seconds in which the engine is to notice by itself that the other party is lost


@dataclasses.dataclass(frozen=True)
class Link:
  """The line between the parties that is imitated; zero and None: none is.

  Attributes:
    rtt: round-trip time, seconds.
    bandwidth: bytes a second, each way.
  """

  rtt: float = 0.0
  bandwidth: float | None = None


DIRECT = Link()


@contextlib.contextmanager
def session(
  sock: socket.socket | TlsSocket,
  role: str,
  *,
  offer: Mapping | None = None,
  weights: Mapping[str, np.ndarray] | None = None,
  threads: int = 0,
  timeout: float = 30.0,
  link: Link = DIRECT,
  prepared: bool = True,
  on_step: Callable[[Step, int, int], None] = lambda step, i, count: None,
) -> Iterator[tuple[Session, dict]]:
  """A session with the party at the other end of a connected socket, and its first words.

  The connection is closed at the end, in peace. An exception within ends it, too, and is raised; the other party is
  told no more than a code of `words.Ending`.

  Args:
    role: of this party: SERVER or CLIENT.
    offer: at the server: what it offers, 'spec' among it.
    weights: at the server.
    threads: of this party; 0: as many as it has cores, at most 8.
    timeout: seconds without any sign of the other, or without its first words, after which it counts as lost.
    prepared, on_step: see `Session`.

  Raises:
    UserError: where versions differ, the other is not the other role, or what it offers is no model.
    PeerLost: where it is no party of ours, or goes.
  """
  connection = Connection(sock, timeout=timeout, rtt=link.rtt, bandwidth=link.bandwidth, unread=0)
  with watched(connection, CLIENT if role == SERVER else SERVER):
    theirs = greet(connection, role, offer, threads, within=timeout)
    spec = _spec_of(str((offer if role == SERVER else theirs).get("spec")))
    options = {"threads": theirs["threads"], "prepared": prepared, "on_step": on_step}
    yield Session(connection, role, spec, weights, **options), theirs
    if role == CLIENT:  # as it says where something was wrong with its prompt or its result
      connection.end(Ending.ENDED)
    else:
      connection.close()


def _spec_of(text: str) -> Spec:
  try:
    return Spec.from_json(text)
  except (RecursionError, AttributeError) as error:
    raise PeerLost("it offers what is no model") from error


@contextlib.contextmanager
def watched(connection: Connection, other: str) -> Iterator[None]:
  """Ends the process where the engine does not notice within GRACE seconds that the other party is lost.

  An exception within ends the session, and is raised: the other party is told a code of `words.Ending`.

  Args:
    other: the other party's role.
  """
  left = threading.Event()

  def watch():
    while not left.wait(1.0):
      if connection.lost is not None and not left.wait(GRACE):
        print(f"error: the {other} is lost: {printable(str(connection.lost))}", file=sys.stderr, flush=True)
        os._exit(2)

  threading.Thread(target=watch, name="watch", daemon=True).start()
  try:
    yield
  except BaseException as error:  # what this party found wrong, or its user's Ctrl-C, ends the other's wait, too
    connection.end(_ending_of(error))
    raise
  finally:
    left.set()


def _ending_of(error: BaseException) -> Ending:
  if isinstance(error, Disagreement):
    return error.ending
  return Ending.LATE if isinstance(error, Overdue) else Ending.ENDED


@contextlib.contextmanager
def ended_well(other: str) -> Iterator[None]:
  """Makes of a lost party, and of an untrustworthy result, one line and exit code 2, whatever threads still wait.

  Args:
    other: the other party's role.
  """
  try:
    yield
  except (PeerLost, Impossible, UserError) as error:
    text = f"the {other} is lost: {error}" if isinstance(error, PeerLost) else str(error)
    with contextlib.suppress(OSError, AttributeError):  # closed, or full: the exit code is left
      print(f"error: {printable(text)}", file=sys.stderr, flush=True)
      sys.stdout.flush()
    os._exit(2)


def two_processes(
  private: Model,
  tokens_SxN: np.ndarray,
  *,
  link: Link = DIRECT,
  threads: int = 0,
  show: bool = True,
  origin: str = "",
  offline: bool = False,
  **options,
) -> dict[str, dict]:
  """Runs some sequences as two parties in processes of their own, over loopback TCP.

  Args:
    threads: of each party; 0: as many as it has cores, at most 8.
    show: a progress bar.
    origin: where the sequences come from, for the error that says that a result cannot be.
    offline: whether products with the weights are made before each sequence.
    options: of `build.build`.

  Returns:
    By role, the records of all steps, threads, peak_rss_bytes and how many products were remade; at the client the
    logits of each sequence.

  Raises:
    UserError: where one of them fails; where results are impossible, after all sequences were run.
  """
  spawn = multiprocessing.get_context("spawn")
  port, port_sender = spawn.Pipe(duplex=False)
  common = {"link": link, "threads": threads, "timeout": LOCAL_TIMEOUT, "prepared": offline}
  offer = {"spec": private.spec.to_json()}
  jobs = {
    SERVER: (_serve, (port_sender, offer, Unnamed(private.weights), tokens_SxN.shape, show, common, options)),
    CLIENT: (_ask, (port, tokens_SxN, origin, common, options)),
  }
  running = {}
  for role, (work, args) in jobs.items():
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(sender, work, args), daemon=True)
    process.start()
    sender.close()
    running[role] = (process, receiver)
  return _collected(running)


def _collected(running: Mapping) -> dict:
  results = {}
  waiting = {receiver: role for role, (_, receiver) in running.items()}
  while waiting:
    for receiver in multiprocessing.connection.wait(list(waiting)):
      role = waiting.pop(receiver)
      try:
        status, value = receiver.recv()
      except EOFError:
        status, value = "error", _ending_of_process(running[role][0])
      if status == "error":
        killed = [of for of, (process, _) in running.items() if _ending_of_process(process) == _KILLED]
        for process, _ in running.values():
          process.terminate()
        role, value = (killed[0], _KILLED) if killed else (role, value)
        raise UserError(f"the {role}'s process failed: {value}")
      results[role] = value
  for process, _ in running.values():
    process.join()
  return results


def _ending_of_process(process) -> str:
  process.join(2)  # its pipe ends a little before it does; and of a lost party it is to be seen why
  return _KILLED if process.exitcode == -signal.SIGKILL else f"it ended without a word (exit code {process.exitcode})"


def _child(sender, work, args) -> None:
  try:
    sender.send(("done", work(*args)))
  except (UserError, PeerLost, Impossible) as error:
    sender.send(("error", str(error)))
  except Exception as error:
    sender.send(("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
    raise


def _serve(port_sender, offer: Mapping, weights: Unnamed, shape, show: bool, common: Mapping, options) -> dict:
  with socket.create_server(("127.0.0.1", 0)) as listening:
    port_sender.send(listening.getsockname()[1])
    sock, _ = listening.accept()
  bar = {"on_step": Steps("private inference")} if show else {}
  with session(sock, SERVER, offer=offer, weights=weights.arrays(), **common, **bar) as (mine, _):
    for _ in range(shape[0]):
      mine.run(shape[1], **options)
      mine.restart()
  return {"records": mine.records, "peak_rss_bytes": _peak_bytes(), "remade": mine.remade}


def _ask(port, tokens_SxN: np.ndarray, origin: str, common: Mapping, options) -> dict:
  logits, failed = [], {}
  with session(socket.create_connection(("127.0.0.1", port.recv())), CLIENT, **common) as (mine, _):
    for i, tokens in enumerate(tokens_SxN):
      try:
        logits.append(mine.run(len(tokens), tokens, **options))
      except Impossible as error:
        failed[i] = error
      mine.restart()
  # Only here, so that what the server says of it does not come first, and one says whether the others fail too.
  check.check_sequences(failed, len(tokens_SxN), origin)
  facts = {"threads": mine.threads, "peak_rss_bytes": _peak_bytes(), "remade": mine.remade}
  return {"records": mine.records, "logits": logits, **facts}


def _peak_bytes() -> int:
  """The largest resident set of this process so far, bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
