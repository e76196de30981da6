"""Serves a model to clients that generate privately: it never sees a prompt, and they never see a weight.

    python -m entropy_attn.private.serve --checkpoint=runs/quickstart --port=9700

Each client is served by a process of its own, one after the other; a lost client ends its process alone.
"""

import base64
import multiprocessing
import pathlib
import socket
import sys
import tempfile

from absl import flags
import numpy as np

from entropy_attn import cli
from entropy_attn.data import pipeline
from entropy_attn.errors import UserError
from entropy_attn.private import engine, party, profile, ranges, sockets, source, wire
from entropy_attn.private import spec as spec_lib
from entropy_attn.private.program import SERVER
from entropy_attn.private.show import Steps


def offer(model: source.Source, transforms: spec_lib.Transforms, error: float) -> tuple[dict, dict[str, np.ndarray]]:
  """What clients are told, and the weights that they are not.

  Raises:
    UserError: for what the user can mend.
  """
  private, _ = profile.private_model(model, transforms, error, model.config.model.context_length)
  name, content = pipeline.open_tokenizer(model.config).file
  tokenizer = {"name": name, "content": base64.b64encode(content).decode()}
  return {"spec": private.spec.to_json(), "tokenizer": tokenizer}, dict(private.weights)


def serve(
  offered: dict, weights: dict[str, np.ndarray], listening: socket.socket, tls, timeout: float, threads: int, once: bool
) -> None:
  """Answers clients until Ctrl-C, or one alone if `once`.

  Args:
    offered, weights: of `offer`.
    timeout: seconds without a sign of the client after which it is given up.
    once: whether to end after the first.

  Raises:
    UserError: with `once`, where the client was lost.
  """
  spawn = multiprocessing.get_context("spawn")
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "weights.npz"
    np.savez(path, **weights)
    while True:
      sock, (host, port, *_) = listening.accept()
      say(f"{host}:{port} connected")
      process = spawn.Process(target=_session, args=(sock, offered, path, tls, timeout, threads))
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
  """A line on standard error."""
  print(text, file=sys.stderr, flush=True)


def _session(sock, offered: dict, weights: pathlib.Path, tls, timeout: float, threads: int) -> None:
  """One client, in this process."""
  with party.ended_well("client"):
    connection = wire.Connection(sockets.secured(sock, tls, server=True), timeout=timeout)
    with party.watched(connection, "client"):
      theirs = party.greet(connection, SERVER, offered, threads)
      spec = spec_lib.Spec.from_json(offered["spec"])
      bar = Steps("for the client")
      session = party.Session(connection, SERVER, spec, np.load(weights), threads=theirs["threads"], on_step=bar)
      while True:
        asked = connection.hear()
        if asked.get("done"):
          break
        length = asked.get("length")
        if not isinstance(length, int) or length < 1:
          raise wire.PeerLost("it asks for what is no length")
        session.run(length)
      bar.close()
      connection.close()


if __name__ == "__main__":
  flags_of_source = source.define_flags()
  host_flag = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine's.")
  port_flag = flags.DEFINE_integer("port", 9700, "Port to listen on.")
  transforms_flag = flags.DEFINE_string("transforms", "", "See private.profile.")
  error_flag = flags.DEFINE_float("error", ranges.ERROR, "Of each layer's exponential: see private.approximate.")
  once_flag = flags.DEFINE_bool("once", False, "End after one client.")
  flags_of_party = party.define_flags()

  def main() -> None:
    engine.core()
    tls, timeout, threads = party.read_flags(flags_of_party)
    listening = sockets.listen(host_flag.value, port_flag.value)
    model = source.load(flags_of_source)
    transforms = spec_lib.transforms_for(model.config.model, transforms_flag.value)
    offered, weights = offer(model, transforms, error_flag.value)
    say(f"{model.description}: serving on {host_flag.value}:{port_flag.value}" + (" with TLS" if tls else ""))
    try:
      serve(offered, weights, listening, tls, timeout, threads, once_flag.value)
    except KeyboardInterrupt:
      raise UserError("stopped by Ctrl-C") from None

  cli.run(main)
