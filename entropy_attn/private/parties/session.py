"""One party of a private inference: agrees with the other upon the program, runs it step by step, and counts.

The client alone learns results, and how many rows failed the check; the server alone holds weights. Both learn the
architecture and the lengths of what is computed.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
import time

import numpy as np

from entropy_attn.errors import UserError, printable
from entropy_attn.private.parties import check, engine
from entropy_attn.private.parties.integers import Matrix
from entropy_attn.private.parties.material import Mask, Material, crossed, laid_out, uniform
from entropy_attn.private.parties.party import Party
from entropy_attn.private.parties.wire import Connection
from entropy_attn.private.parties.words import Disagreement, Ending
from entropy_attn.private.program import attend
from entropy_attn.private.program.ahead import ahead, part_name
from entropy_attn.private.program.build import build, client_inputs, server_inputs, set_up
from entropy_attn.private.program.products import CrossTerms
from entropy_attn.private.program.spec import Settings, Spec
from entropy_attn.private.program.types import (
  CLIENT,
  SECRET,
  SERVER,
  SHARED,
  Program,
  SecretProduct,
  Step,
  layer_name,
)

# Bytes of the engine's messages that may come before they are asked for, beside the inputs: a wide product sends many.
_AHEAD_BYTES = 2**29
# Who draws what is random of a program of `ahead`: of secrets each party its own share; matrices are there.
_DRAWN_BY = {SHARED: (CLIENT,), SECRET: (SERVER, CLIENT), SERVER: ()}
_TRIES = 20  # of a product whose ciphertexts fail
_SHARE_BYTES = 32  # of an element of an input, at most, in shares or encrypted


@dataclasses.dataclass(frozen=True)
class Record:
  """What one step, with the sharing of its inputs, or the reveal of the results took, as this party saw it.

  Attributes:
    layer: see `types.layer_name`.
    sent: bytes.
    messages: sent.
    offline: whether it needed no prompt.
  """

  layer: str
  kind: str
  sent: int
  messages: int
  rounds: float
  seconds: float
  offline: bool


class Session:
  """Programs run one after the other over one connection; what they keep stays shared between the parties.

  Args:
    role: SERVER or CLIENT.
    weights: at the server.
    threads: of the engine, the same at both parties.
    prepared: whether every inference has material, made ahead or right before it, the same at both parties.
    on_step: called before each step with it, its index and the count of steps.

  Attributes:
    records: one a step, in the order they ran.
    remade: products of masks that failed when they were verified, and were made anew.
  """

  def __init__(
    self,
    connection: Connection,
    role: str,
    spec: Spec,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    threads: int,
    prepared: bool = False,
    on_step: Callable[[Step, int, int], None] = lambda step, i, count: None,
  ):
    self.connection, self.role, self.spec, self.threads = connection, role, spec, threads
    self.records: list[Record] = []
    self.remade = 0
    self._prepared, self._settings = prepared, Settings.of(spec, prepared=prepared)
    self._weights, self._on_step = weights, on_step
    self._compiler = engine.Compiler(spec)
    self._past = self._runs = 0
    self._offline = False
    self._machine: Party | None = None
    self._matrices: dict[str, Matrix] = {}

  def prepare(self, length: int, tokens: int = 1, *, layers: int | None = None) -> list[Material]:
    """Makes material for a prompt and the tokens after it, together with the other party: one for each inference.

    Args:
      length: of the prompt.
      tokens: inferences in all; each after the first is of one token.
      layers: the first so many alone; None: all.

    Raises:
      UserError: where the programs differ, or for more positions than the model has.
      PeerLost: where the other party goes.
    """
    lengths = (length, *[1] * (tokens - 1))
    program = ahead(self.spec, lengths, past=self._past, layers=layers)
    codes = self._agreed(program)
    drawn, operands, masks = {}, {}, {}
    for step in program.steps:
      operands[step.writes[0]] = self._draw(step, program, drawn)

    def make():
      for step in self._steps(program, codes, collections.ChainMap(drawn, self._weights or {}), None):
        (name,) = step.writes
        product = self._machine.taken(name)
        if isinstance(step.operation, CrossTerms):
          product = crossed(step.operation, operands[name], product)
        masks[name] = Mask(operands[name], product)

    with self._before_the_prompt():
      self._guarded(make)
    return _parts(masks, length, tokens)

  def _draw(self, step: Step, program: Program, drawn: dict) -> tuple[np.ndarray, ...]:
    """This party's shares of the masks of a product; adds what it puts into the product to `drawn`."""
    if isinstance(step.operation, CrossTerms):
      masks = tuple(uniform(shape, step.ring) for shape in step.operation.shapes)
      own = step.reads[0 if self.role == SERVER else 1]
      drawn[own] = laid_out(step.operation, masks, server=self.role == SERVER)
      return masks
    inputs = {name: program.inputs[name] for name in step.reads}
    masks = {name: uniform(v.shape, v.ring) for name, v in inputs.items() if self.role in _DRAWN_BY[v.owner]}
    drawn |= masks
    return tuple(masks.values())

  def run(
    self, length: int, tokens: np.ndarray | None = None, *, material: Material | None = None, **options
  ) -> np.ndarray | None:
    """What is revealed of `length` new tokens after those before, at the client; None at the server.

    Logits [1 or length, V], or what else the program's first output is: see `build.build`.

    Args:
      tokens: at the client: ids [length].
      material: made ahead by both parties, for so many tokens at least, and not used before; None: where this session
        is prepared, it is made now.
      options: of `build.build`.

    Raises:
      UserError: for tokens out of range, or more than the model has positions; where the programs differ.
      PeerLost: where the other party goes.
      check.Impossible: at the client, where the result is not to be trusted.
    """
    if material is None and self._prepared:
      (material,) = self.prepare(length, layers=options.get("layers"))
    program = self._program(length, material, **options)
    if self.role == CLIENT:
      inputs = client_inputs(self.spec, tokens)
    else:
      inputs = server_inputs(self._weights, length, self._past)
    codes = self._agreed(program)
    outputs = self._guarded(lambda: self._run(program, codes, inputs, material))
    past, before = self._past, self._runs
    self._past, self._runs = past + length, before + 1
    if self.role == SERVER:
      return None
    rows = int(outputs.get("impossible", 0))
    if rows:
      how = f"two parties of {self.threads} threads, after {before} runs of this session"
      facts = {"digest": engine.digest(self.spec, self._settings, codes), "how": how, "settings": self._settings}
      facts |= {"past": past, "layers": options.get("layers")}
      raise check.Impossible(rows, check.circumstances(self.spec, tokens, outputs.get("logits"), **facts))
    return outputs[program.outputs[0]]

  def _program(self, length: int, material: Material | None, **options) -> Program:
    """The program of `length` new tokens; with material, one that it fits.

    Where rows are divided depends on how many keys there are (`attend.divisions`), and material was made for the most.
    """
    t = self.spec.transforms
    for division in (t.division, *(attend.divisions(t) if material is not None else ())):
      spec = dataclasses.replace(self.spec, transforms=dataclasses.replace(t, division=division))
      program = build(spec, length, past=self._past, prepared=self._prepared, **options)
      if material is None or material.fits(program.products):
        return program
    raise UserError(f"the material, for {material.rows} tokens, does not fit this program of {length}")

  def restart(self) -> None:
    """Forgets the tokens so far; the next run begins anew."""
    for name in [name for name in self._machine.names if name.startswith("past.")]:
      self._machine.forget(name)
    self._past = 0

  def _agreed(self, program: Program) -> list[bytes]:
    """The code of a program, upon which both parties agree; the first time, what they compute with is set up."""
    codes = self._compiler.program(program)
    self._agree(engine.digest(self.spec, self._settings, codes), program)
    if self._machine is None:
      self._guarded(self._set_up)
    return codes

  def _set_up(self) -> None:
    self._machine = Party(self.connection, self.role, self._settings, self.threads)
    rings = {step.ring for step in build(self.spec, 1).steps}
    first = set_up(self.threads, sorted(rings, reverse=True))
    ones = {name: np.ones(v.shape, v.dtype) for name, v in first.inputs.items()} if self.role == CLIENT else {}
    with self._before_the_prompt():
      for _ in self._steps(first, self._compiler.program(first), ones, None):
        pass

  @contextlib.contextmanager
  def _before_the_prompt(self):
    """What is recorded within needs no prompt."""
    self._offline = True
    try:
      yield
    finally:
      self._offline = False

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

  def _steps(self, program: Program, codes: list[bytes], inputs: Mapping, material: Material | None) -> Iterator[Step]:
    """Runs a program's steps one by one, and yields each; gives what they read before, and forgets it after."""
    machine, last_read = self._machine, {}
    for i, step in enumerate(program.steps):
      last_read |= dict.fromkeys(step.reads, i)
    given = {name for name in program.inputs if name.startswith("past.")}
    for i, (step, code) in enumerate(zip(program.steps, codes, strict=True)):
      self._on_step(step, i, len(codes))
      prepared = material is not None and step.writes[0] in program.products
      with self._recorded(layer_name(step), step.kind):
        for name in step.reads:
          if name in program.inputs and name not in given and not (prepared and program.inputs[name].whole):
            machine.give(name, program.inputs[name], inputs.get(name))
            given.add(name)
        if prepared:
          self._multiply(step, material.masks[step.writes[0]])
        else:
          machine.run(step, code)
          self._verify(step, code, inputs)
      for name in set(step.reads):
        if last_read[name] == i and name in machine.names and name not in program.outputs + program.kept:
          machine.forget(name)
      yield step

  def _verify(self, step: Step, code: bytes, inputs: Mapping) -> None:
    """Makes products of masks anew until those that are opened are right."""
    if not isinstance(step.operation, CrossTerms):
      return
    own = inputs[step.reads[0 if self.role == SERVER else 1]]
    for _ in range(_TRIES):
      if self._machine.witnessed(step, own):
        return
      self.remade += 1
      self._machine.run(step, code)
    raise UserError(f"the two-party engine gives wrong products {_TRIES} times in a row: it is not to be trusted here")

  def _multiply(self, step: Step, mask: Mask) -> None:
    """Runs a product that was prepared."""
    if isinstance(step.operation, SecretProduct):
      self._machine.multiply(step, mask)
    else:
      self._machine.weigh(step, mask, self._matrix(step.reads[1]))

  def _matrix(self, name: str) -> Matrix | None:
    """Weights to multiply integers with, at the server."""
    if self.role == CLIENT:
      return None
    if name not in self._matrices:
      self._matrices[name] = Matrix(self._weights[name])
    return self._matrices[name]

  def _run(self, program: Program, codes: list[bytes], inputs: Mapping, material: Material | None) -> dict:
    machine = self._machine
    for _ in self._steps(program, codes, inputs, material):
      pass
    with self._recorded("head", "reveal"):
      outputs = {name: machine.reveal_to_client(name) for name in program.outputs}
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
    self.records.append(Record(layer, kind, spent.sent, spent.sent_messages, spent.chain / 2, seconds, self._offline))

  def _guarded(self, action):
    """What action() returns; the engine's complaints about a lost connection become the PeerLost that they are."""
    try:
      return action()
    except RuntimeError:
      self.connection.raise_if_lost()
      raise


def _parts(masks: Mapping[str, Mask], length: int, tokens: int) -> list[Material]:
  """Masks of a program of `ahead` as one material an inference."""
  secret = {name for i in range(tokens) for name in masks if name.startswith(part_name(i, ""))}
  total = length + tokens - 1
  parts = []
  for i in range(tokens):
    new = slice(length) if i == 0 else slice(length + i - 1, length + i)
    found = {
      name: mask.rows(new if len(mask.product) == total else slice(i, i + 1))  # a row of each token, or of each answer
      for name, mask in masks.items()
      if name not in secret
    }
    prefix = part_name(i, "")
    found |= {name.removeprefix(prefix): mask for name, mask in masks.items() if name.startswith(prefix)}
    parts.append(Material(length if i == 0 else 1, found))
  return parts
