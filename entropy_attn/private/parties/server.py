"""A server of private inferences: what it offers, and one client after the other in processes of their own."""

import base64
from collections.abc import Iterator, Mapping
import contextlib
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import threading

import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.parties import door, keeper, pair, sockets
from entropy_attn.private.parties import quota as quota_lib
from entropy_attn.private.parties.bar import Steps
from entropy_attn.private.parties.keeper import ServersKeeper
from entropy_attn.private.parties.material import Material
from entropy_attn.private.parties.quota import Asked, Quota
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.sockets import Tls
from entropy_attn.private.parties.unnamed import Unnamed
from entropy_attn.private.parties.wire import Connection, PeerEnded, PeerLost
from entropy_attn.private.parties.words import Disagreement, Ending
from entropy_attn.private.program.prepare import prepare
from entropy_attn.private.program.spec import TOP_K, Transforms
from entropy_attn.private.program.types import CLIENT, SERVER
from entropy_attn.run.pretrained import Pretrained


def offer(
  model: Pretrained, transforms: Transforms, error: float, *, reveal: str = "argmax", top_k: int = TOP_K
) -> tuple[dict, dict[str, np.ndarray]]:
  """What clients are told ('spec' and 'tokenizer'), and the weights, by name, that they are not.

  Args:
    error: of each layer's exponential.
    reveal, top_k: what they learn of each answer: see `spec.Spec`.

  Raises:
    UserError: for what the user can mend.
  """
  length = model.config.model.context_length
  private = prepare(model, transforms, length, error, reveal=reveal, top_k=top_k).private
  name, content = model.tokenizer.file
  tokenizer = {"name": name, "content": base64.b64encode(content).decode()}
  return {"spec": private.spec.to_json(), "tokenizer": tokenizer}, dict(private.weights)


def serve(
  offered: Mapping,
  weights: Mapping[str, np.ndarray],
  listening: socket.socket,
  *,
  tls: Tls | None = None,
  timeout: float = 30.0,
  threads: int = 0,
  once: bool = False,
  quota: Quota | None = None,
  max_session: float = 0.0,
  material: pathlib.Path | None = None,
  material_most: float = 0.0,
) -> None:
  """Answers clients until Ctrl-C or a signal to end, or one alone if `once`.

  Args:
    offered, weights: of `offer`.
    timeout: seconds without a sign of the client, its first words or its next request, after which it is given up.
    threads: of this party; 0: as many as it has cores, at most 8.
    once: whether to end after the first; where that one was lost, the process exits as it did.
    quota: of each client's answers; None: as many as it asks for.
    max_session: seconds that one client may take, from its first words; 0: any time.
    material: a folder for what clients make ahead of their prompts; None: nothing is made.
    material_most: bytes of it from which no more is made.

  Raises:
    UserError: when told to end by SIGTERM or SIGHUP.
  """
  spawn = multiprocessing.get_context("spawn")
  kept, entrance, process = Unnamed(weights), door.Door(listening), None
  keeping = None if material is None else (material, keeper.weights_digest(weights), material_most)
  offered = {**offered, "material": material is not None}
  with _signals_raise():
    try:
      while True:
        sock, name = entrance.next()
        say(f"{name} connected")
        mine, its = spawn.Pipe()
        args = (sock, offered, kept, tls, timeout, threads, quota and its, max_session, keeping)
        process = spawn.Process(target=_answer, args=args)
        process.start()
        sock.close()
        its.close()
        if quota is not None:
          quota_lib.answer(quota, mine, process, say)
        process.join()
        mine.close()
        say(f"{name} {'served' if process.exitcode == 0 else 'not served to the end'}")
        if once:
          if process.exitcode:
            sys.exit(process.exitcode)
          return
    finally:
      entrance.close()
      if process is not None:
        process.kill()


def say(text: str) -> None:
  """Writes a line to standard error."""
  print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
  """Has SIGTERM and SIGHUP end what is within as an error does; one that is ignored, as under nohup, stays so."""

  def end(number, frame):
    raise UserError(f"stopped by {signal.Signals(number).name}")

  before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
  for number, handler in before.items():
    if handler is not signal.SIG_IGN:
      signal.signal(number, end)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _answer(
  sock: socket.socket,
  offered: Mapping,
  weights: Unnamed,
  tls: Tls | None,
  timeout: float,
  threads: int,
  pipe,
  max_session: float,
  keeping: tuple[pathlib.Path, str, float] | None,
) -> None:
  """Answers one client, in this process, for as long as it asks, may ask, and the server lives.

  Args:
    pipe: to what counts its answers; None: nothing does.
    keeping: of material: the folder, the weights' digest, and how much; None: none is made.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends this process
  threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
  with pair.ended_well(CLIENT):
    bar = Steps("for the client")
    try:
      door.let_in(sock)
    except OSError as error:
      raise PeerLost("it left before its turn") from error
    secured = sockets.secured(sock, tls, server=True)
    asked = pipe and Asked(pipe, sockets.who(secured))
    kept = keeping and ServersKeeper(keeping[0], keeping[1], sockets.who(secured), keeping[2])
    offered = offered if asked is None else offered | {"answers": asked.left()}
    options = {"offer": offered, "weights": weights.arrays(), "timeout": timeout, "threads": threads, "on_step": bar}
    with pair.session(secured, SERVER, **options) as (session, _):
      if max_session:
        _end_after(max_session, session.connection)
      for length, material in _requests(session, timeout, kept):
        if asked is not None and not asked.take():
          raise Disagreement("the client has had as many answers in 24 hours as --quota allows", Ending.QUOTA)
        session.run(length, material=material)
        bar.close()


def _requests(session: Session, timeout: float, kept: ServersKeeper | None) -> Iterator[tuple[int, Material | None]]:
  """The lengths that a client asks for, until it ends, each with what was made for it; makes more when it asks."""
  left = session.spec.context_length
  try:
    while True:
      request = session.connection.hear(timeout)
      if kept is not None and "prepare" in request:
        rows, size = kept.make(session, request)
        say(f"material for {rows} tokens kept, {size / 1e6:,.0f} MB" if size else "--material_most is reached")
        continue
      length = request.get("length")
      if type(length) is not int or not 1 <= length <= left:
        raise Disagreement("the client asks for what is no length that this model has", Ending.REQUEST)
      left -= length
      yield length, kept.take(session, request) if kept is not None and "material" in request else None
  except PeerEnded as ended:
    if ended.ending is not Ending.ENDED:
      raise
  finally:
    if kept is not None:
      kept.drop()


def _end_after(seconds: float, connection: Connection) -> None:
  """Ends this process after so many seconds, whatever it computes or waits for, and tells the client why."""

  def end():
    say(f"error: the session has taken {seconds:.0f} s, as long as --max_session allows")
    connection.end(Ending.TIME)  # from here on the client may go, and then whoever waits for it ends this process
    os._exit(2)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(2)
