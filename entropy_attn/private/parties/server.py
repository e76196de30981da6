"""A server of private inferences: what it offers, and one client after the other in processes of their own."""

import base64
from collections.abc import Mapping
import multiprocessing
import pathlib
import socket
import sys
import tempfile

import numpy as np

from entropy_attn.private.parties import pair, sockets
from entropy_attn.private.parties.bar import Steps
from entropy_attn.private.parties.sockets import Tls
from entropy_attn.private.parties.wire import PeerLost
from entropy_attn.private.program.prepare import prepare
from entropy_attn.private.program.spec import Transforms
from entropy_attn.private.program.types import CLIENT, SERVER
from entropy_attn.run.pretrained import Pretrained


def offer(model: Pretrained, transforms: Transforms, error: float) -> tuple[dict, dict[str, np.ndarray]]:
  """What clients are told ('spec' and 'tokenizer'), and the weights, by name, that they are not.

  Args:
    error: of each layer's exponential.

  Raises:
    UserError: for what the user can mend.
  """
  private = prepare(model, transforms, model.config.model.context_length, error).private
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
) -> None:
  """Answers clients until Ctrl-C, or one alone if `once`.

  Args:
    offered, weights: of `offer`.
    timeout: seconds without a sign of the client after which it is given up.
    threads: of this party; 0: as many as it has cores.
    once: whether to end after the first; where that one was lost, the process exits as it did.
  """
  spawn = multiprocessing.get_context("spawn")
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "weights.npz"
    np.savez(path, **weights)
    while True:
      sock, (host, port, *_) = listening.accept()
      say(f"{host}:{port} connected")
      process = spawn.Process(target=_answer, args=(sock, offered, path, tls, timeout, threads))
      process.start()
      sock.close()
      process.join()
      ended = "served" if process.exitcode == 0 else "not served to the end"
      say(f"{host}:{port} {ended}")
      if once:
        if process.exitcode:
          sys.exit(process.exitcode)
        return


def say(text: str) -> None:
  """Writes a line to standard error."""
  print(text, file=sys.stderr, flush=True)


def _answer(
  sock: socket.socket, offered: Mapping, weights: pathlib.Path, tls: Tls | None, timeout: float, threads: int
) -> None:
  """Answers one client, in this process, for as long as it asks."""
  with pair.ended_well(CLIENT):
    bar, secured = Steps("for the client"), sockets.secured(sock, tls, server=True)
    options = {"offer": offered, "weights": np.load(weights), "timeout": timeout, "threads": threads, "on_step": bar}
    with pair.session(secured, SERVER, **options) as (session, _):
      while True:
        asked = session.connection.hear()
        if asked.get("done"):
          break
        length = asked.get("length")
        if not isinstance(length, int) or length < 1:
          raise PeerLost("it asks for what is no length")
        session.run(length)
      bar.close()
