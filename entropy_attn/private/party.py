"""One party of a private inference: agrees with the other upon the program, runs it step by step, and counts.

The client alone learns results; the server alone holds weights. Both learn the architecture, the lengths of what is
computed, and how many rows failed the check.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
from importlib import metadata
import os
import resource
import sys
import threading
import time

from absl import flags
import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private import engine
from entropy_attn.private.build import build, client_inputs, server_inputs, set_up
from entropy_attn.private.machine import Party
from entropy_attn.private.program import CLIENT, SERVER, Program, Step, layer_name
from entropy_attn.private.sockets import Tls
from entropy_attn.private.spec import Spec
from entropy_attn.private.wire import Connection, PeerLost

GRACE = 15.0  # seconds


@dataclasses.dataclass(frozen=True)
class Record:
  """What one step, with the sharing of its inputs, or the reveal of the results took, as this party saw it."""

  layer: str  # see `program.layer_name`
  kind: str
  sent: int  # bytes
  messages: int  # sent
  rounds: float
  seconds: float


class Impossible(Exception):
  """A result that no softmax, or no LayerNorm, can have given: fixed point overflowed, or the engine erred."""


def check_possible(rows: int) -> None:
  """Raises Impossible where so many rows failed a check."""
  if rows:
    raise Impossible(
      f"{rows} row(s) are none that a softmax or a LayerNorm gives: numbers left the range of fixed point, or the "
      "engine erred; the result is thrown away"
    )


def greet(connection: Connection, role: str, offer: Mapping | None = None, threads: int = 0) -> dict:
  """Both parties' first words; the server tells what it offers.

  Args:
    offer: at the server: for the client to read.
    threads: of this party; 0: as many as it has cores.

  Returns:
    The other's words: at the client with the offer. 'threads' is the lesser of both.

  Raises:
    UserError: where versions differ, or the other is not the other role.
    PeerLost: where it is no party of ours.
  """
  threads = threads or len(os.sched_getaffinity(0))
  mine = {"entropy_attn": metadata_version(), "engine": engine.version(), "role": role, "threads": threads}
  connection.tell({**mine, **(offer or {})})
  theirs = connection.hear()
  for name in ("entropy_attn", "engine"):
    if theirs.get(name) != mine[name]:
      raise UserError(f"the other party has {name} {theirs.get(name)}, this one {mine[name]}: install the same")
  other = CLIENT if role == SERVER else SERVER
  if theirs.get("role") != other:
    raise UserError(f"the other party is a {theirs.get('role')} too: one serves, the other generates")
  if not isinstance(theirs.get("threads"), int) or theirs["threads"] < 1:
    raise PeerLost("it does not say how many threads it has")
  return theirs | {"threads": min(threads, theirs["threads"])}


def metadata_version() -> str:
  """Of this package, or of its source where it is not installed."""
  try:
    return metadata.version("entropy_attn")
  except metadata.PackageNotFoundError:
    return "source"


class Session:
  """Programs run one after the other over one connection; what they keep stays shared between the parties.

  Args:
    weights: at the server.
    threads: of the engine, the same at both parties.
    on_step: called before each step with it, its index and the count of steps.
  """

  def __init__(
    self,
    connection: Connection,
    role: str,
    spec: Spec,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    threads: int,
    on_step: Callable[[Step, int, int], None] = lambda step, i, count: None,
  ):
    self.role, self.spec, self.threads = role, spec, threads
    self.records: list[Record] = []
    self._connection, self._weights, self._on_step = connection, weights, on_step
    self._compiler = engine.Compiler(spec)
    self._past = 0
    self._machine: Party | None = None

  def run(self, length: int, tokens: np.ndarray | None = None, **options) -> np.ndarray | None:
    """Logits for `length` new tokens after those before, at the client; None at the server.

    Args:
      tokens: at the client, [length].
      options: of `build.build`.

    Raises:
      UserError: for tokens out of range, or more than the model has positions; where the programs differ.
      PeerLost: where the other party goes.
      Impossible: where the result is not to be trusted.
    """
    program = build(self.spec, length, past=self._past, **options)
    inputs = client_inputs(self.spec, tokens) if self.role == CLIENT else self._server_inputs(length)
    codes = self._compiler.program(program)
    self._agree(engine.digest(self.spec, codes))
    if self._machine is None:
      self._guarded(lambda: self._set_up(program))
    outputs = self._guarded(lambda: self._run(program, codes, inputs))
    self._past += length
    if self.role == SERVER:
      return None
    check_possible(int(outputs.get("impossible", 0)))
    return outputs["logits"]

  def restart(self) -> None:
    """Forgets the tokens so far."""
    for name in [name for name in self._machine.names if name.startswith("past.")]:
      self._machine.forget(name)
    self._past = 0

  def _set_up(self, program: Program) -> None:
    self._machine = Party(self._connection, self.role, engine.Settings.of(self.spec), self.threads)
    first = set_up(self.threads, sorted({step.ring for step in program.steps}, reverse=True))
    ones = {name: np.ones(v.shape, v.dtype) for name, v in first.inputs.items()} if self.role == CLIENT else {}
    self._run(first, self._compiler.program(first), ones)

  def _server_inputs(self, length: int) -> dict[str, np.ndarray]:
    return server_inputs(self._weights, length, self._past)

  def _agree(self, digest: str) -> None:
    self._connection.tell({"program": digest})
    theirs = self._connection.hear().get("program")
    if theirs != digest:
      raise UserError(
        f"the other party would run another program ({str(theirs)[:12]} …, not {digest[:12]} …): "
        "nothing was shared; use the same version of the model, of this package and of jax"
      )

  def _run(self, program: Program, codes: list[bytes], inputs: Mapping[str, np.ndarray]) -> dict:
    machine, last_read = self._machine, {}
    for i, step in enumerate(program.steps):
      last_read |= dict.fromkeys(step.reads, i)
    given = {name for name in program.inputs if name.startswith("past.")}
    for i, (step, code) in enumerate(zip(program.steps, codes, strict=True)):
      self._on_step(step, i, len(codes))
      with self._recorded(layer_name(step), step.kind):
        for name in step.reads:
          if name in program.inputs and name not in given:
            machine.give(name, program.inputs[name], inputs.get(name))
            given.add(name)
        machine.run(step, code)
      for name in set(step.reads):
        if last_read[name] == i and name not in program.outputs + program.kept:
          machine.forget(name)
    if program.outputs:
      with self._recorded("head", "reveal"):
        outputs = {name: machine.reveal_to_client(name) for name in program.outputs}
    else:
      outputs = {}
    for name in program.outputs:
      machine.forget(name)
    for name in program.kept:
      machine.rename(name, f"past.{name}")
    return outputs

  @contextlib.contextmanager
  def _recorded(self, layer: str, kind: str):
    """Appends to the records what is sent meanwhile."""
    before, started = self._connection.counts(), time.monotonic()
    yield
    spent = self._connection.counts() - before
    seconds = time.monotonic() - started
    self.records.append(Record(layer, kind, spent.sent, spent.sent_messages, spent.chain / 2, seconds))

  def _guarded(self, action):
    """action(), with the engine's complaints about a lost connection as the PeerLost that they are."""
    try:
      return action()
    except RuntimeError as error:
      if self._connection.lost is not None:
        raise PeerLost(self._connection.lost) from error
      raise


@contextlib.contextmanager
def watched(connection: Connection, other: str):
  """Ends the process where the engine does not notice within GRACE seconds that the other party is lost."""
  left = threading.Event()

  def watch():
    while not left.wait(1.0):
      if connection.lost is not None and not left.wait(GRACE):
        print(f"error: the {other} is lost: {connection.lost}", file=sys.stderr, flush=True)
        os._exit(2)

  threading.Thread(target=watch, name="watch", daemon=True).start()
  try:
    yield
  except Exception as error:
    with contextlib.suppress(PeerLost):  # what this party found wrong ends the other's wait, too
      connection.tell({"failed": str(error)})
      connection.close()
    raise
  finally:
    left.set()


@contextlib.contextmanager
def ended_well(other: str):
  """Makes of a lost party, and of an untrustworthy result, one line and exit code 2, whatever threads still wait."""
  try:
    yield
  except (PeerLost, Impossible, UserError) as error:
    text = f"the {other} is lost: {error}" if isinstance(error, PeerLost) else str(error)
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)


def define_flags():
  """Defines the flags that both parties share; returns what `read_flags` takes."""
  return (
    flags.DEFINE_string("tls_cert", None, "This party's certificate, PEM; with --tls_key and --tls_ca."),
    flags.DEFINE_string("tls_key", None, "Its key, PEM."),
    flags.DEFINE_string("tls_ca", None, "The authority that signed the other's certificate, PEM."),
    flags.DEFINE_float("timeout", 30.0, "Seconds without a sign of the other party until it is given up."),
    flags.DEFINE_integer("threads", 0, "Of this party; 0: as many as it has cores."),
  )


def read_flags(holders) -> tuple[Tls | None, float, int]:
  """(TLS or None, timeout, threads).

  Raises:
    UserError: where only a part of TLS is given.
  """
  *files, timeout, threads = (holder.value for holder in holders)
  if any(files) and not all(files):
    raise UserError("TLS needs all of --tls_cert, --tls_key and --tls_ca")
  return Tls(*files) if all(files) else None, timeout, threads


def peak_bytes() -> int:
  """Of this process: the largest resident set."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
