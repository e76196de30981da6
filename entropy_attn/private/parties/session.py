"""One party of a private inference: agrees with the other upon the program, runs it step by step, and counts.

The client alone learns results, and how many rows failed the check; the server alone holds weights. Both learn the
architecture and the lengths of what is computed.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
import time

import numpy as np

from entropy_attn.private.parties import check, engine
from entropy_attn.private.parties.party import Party
from entropy_attn.private.parties.wire import Connection
from entropy_attn.private.parties.words import Disagreement, Ending, printable
from entropy_attn.private.program.build import build, client_inputs, server_inputs, set_up
from entropy_attn.private.program.spec import Settings, Spec
from entropy_attn.private.program.types import CLIENT, SERVER, Program, Step, layer_name

# Bytes of the engine's messages that may come before they are asked for, beside the inputs: a wide product sends many.
_AHEAD_BYTES = 2**29
_SHARE_BYTES = 32  # of an element of an input, at most, in shares or encrypted


@dataclasses.dataclass(frozen=True)
class Record:
  """What one step, with the sharing of its inputs, or the reveal of the results took, as this party saw it.

  Attributes:
    layer: see `types.layer_name`.
    sent: bytes.
    messages: sent.
  """

  layer: str
  kind: str
  sent: int
  messages: int
  rounds: float
  seconds: float


class Session:
  """Programs run one after the other over one connection; what they keep stays shared between the parties.

  Args:
    role: SERVER or CLIENT.
    weights: at the server.
    threads: of the engine, the same at both parties.
    on_step: called before each step with it, its index and the count of steps.

  Attributes:
    records: one a step, in the order they ran.
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
    self.connection, self.role, self.spec, self.threads = connection, role, spec, threads
    self.records: list[Record] = []
    self._weights, self._on_step = weights, on_step
    self._compiler = engine.Compiler(spec)
    self._past = self._runs = 0
    self._machine: Party | None = None

  def run(self, length: int, tokens: np.ndarray | None = None, **options) -> np.ndarray | None:
    """What is revealed of `length` new tokens after those before, at the client; None at the server.

    Logits [1 or length, V], or what else the program's first output is: see `build.build`.

    Args:
      tokens: at the client: ids [length].
      options: of `build.build`.

    Raises:
      UserError: for tokens out of range, or more than the model has positions; where the programs differ.
      PeerLost: where the other party goes.
      check.Impossible: at the client, where the result is not to be trusted.
    """
    program = build(self.spec, length, past=self._past, **options)
    inputs = client_inputs(self.spec, tokens) if self.role == CLIENT else self._server_inputs(length)
    codes = self._compiler.program(program)
    digest = engine.digest(self.spec, codes)
    self._agree(digest, program)
    if self._machine is None:
      self._guarded(lambda: self._set_up(program))
    outputs = self._guarded(lambda: self._run(program, codes, inputs))
    past, before = self._past, self._runs
    self._past, self._runs = past + length, before + 1
    if self.role == SERVER:
      return None
    rows = int(outputs.get("impossible", 0))
    if rows:
      how = f"two parties of {self.threads} threads, after {before} runs of this session"
      facts = {"digest": digest, "how": how, "past": past, "layers": options.get("layers")}
      raise check.Impossible(rows, check.circumstances(self.spec, tokens, outputs.get("logits"), **facts))
    return outputs[program.outputs[0]]

  def restart(self) -> None:
    """Forgets the tokens so far; the next run begins anew."""
    for name in [name for name in self._machine.names if name.startswith("past.")]:
      self._machine.forget(name)
    self._past = 0

  def _set_up(self, program: Program) -> None:
    self._machine = Party(self.connection, self.role, Settings.of(self.spec), self.threads)
    first = set_up(self.threads, sorted({step.ring for step in program.steps}, reverse=True))
    ones = {name: np.ones(v.shape, v.dtype) for name, v in first.inputs.items()} if self.role == CLIENT else {}
    self._run(first, self._compiler.program(first), ones)

  def _server_inputs(self, length: int) -> dict[str, np.ndarray]:
    return server_inputs(self._weights, length, self._past)

  def _agree(self, digest: str, program: Program) -> None:
    inputs = sum(math.prod(v.shape) for v in program.inputs.values() if v.owner != SERVER)
    # Before the other learns the digest: it may be the first to know that both agree, and go on.
    self.connection.expect(engine=_AHEAD_BYTES + _SHARE_BYTES * inputs)
    self.connection.tell({"program": digest})
    theirs = self.connection.hear().get("program")
    if theirs != digest:
      raise Disagreement(
        f"the other party would run another program ({printable(str(theirs), 12)}, not {digest[:12]} …): "
        "nothing was shared; use the same version of the model, of this package and of jax",
        Ending.PROGRAM,
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
    """Appends a record of what is sent, and how long it takes, within the context."""
    before, started = self.connection.counts(), time.monotonic()
    yield
    spent = self.connection.counts() - before
    seconds = time.monotonic() - started
    self.records.append(Record(layer, kind, spent.sent, spent.sent_messages, spent.chain / 2, seconds))

  def _guarded(self, action):
    """What action() returns; the engine's complaints about a lost connection become the PeerLost that they are."""
    try:
      return action()
    except RuntimeError:
      self.connection.raise_if_lost()
      raise
