"""Machines that run steps on named variables: what both parties share, and a reference that computes alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from entropy_attn.private.parties import shares
from entropy_attn.private.parties.engine import INTEGERS, core
from entropy_attn.private.parties.integers import encoded
from entropy_attn.private.parties.shares import Ring
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import NARROW, WIDE, Product, Step, Variable


class Machine:
  """Runs steps on named variables, and moves them between the rings.

  Args:
    rings: by their bits.
  """

  def __init__(self, rings: Mapping[int, Ring]):
    self._rings = rings
    self._where: dict[str, int] = {}  # the ring that holds a variable

  def run(self, step: Step, code: bytes) -> None:
    """Runs one step.

    Args:
      code: of `engine.Compiler`, for the step's operation and ring.
    """
    for name in step.reads:
      self._bring(name, step.ring)
    if isinstance(step.operation, Product):
      self._run_on_integers(step, code)
    else:
      self._execute(step.kind, step.reads, step.writes, step.ring, code)

  def _bring(self, name: str, ring: int) -> None:
    """Moves a variable to a ring, unless it is there."""
    if self._where[name] != ring:
      share = self.share(name)
      self.forget(name)
      self._set(name, shares.moved(share, ring), ring)

  def _execute(self, kind: str, reads: Sequence[str], writes: Sequence[str], ring: int, code: bytes) -> None:
    self._rings[ring].runtime.Run(core().Executable(kind, list(reads), list(writes), code))
    for name in writes:
      if self._where.get(name, ring) != ring:
        self.forget(name)
      self._where[name] = ring

  def _run_on_integers(self, step: Step, code: bytes) -> None:
    """Runs a product, of which the engine takes all that has a point for integers."""
    (name,) = step.writes
    for read in step.reads:
      self._set(f"{read} as integers", shares.as_integers(self.share(read)), step.ring)
    self._execute(step.kind, [f"{read} as integers" for read in step.reads], step.writes, step.ring, code)
    for read in step.reads:
      self.forget(f"{read} as integers")
    self._set(name, shares.as_fixed_point(self.share(name)), step.ring)

  @property
  def names(self) -> list[str]:
    """The names of all variables that there are."""
    return list(self._where)

  def share(self, name: str):
    """This machine's share of a variable, in the ring that holds it."""
    return self._rings[self._where[name]].runtime.GetVar(name)

  def forget(self, name: str) -> None:
    """Frees a variable; its name may be used again."""
    self._rings[self._where.pop(name)].runtime.DelVar(name)

  def rename(self, name: str, new: str) -> None:
    """Keeps a variable under another name."""
    ring, share = self._where[name], self.share(name)
    self.forget(name)
    self._set(new, share, ring)

  def _own(self, variable: Variable, value: np.ndarray, rank: int, owner: int):
    """A party's share of what is given without a message.

    Args:
      value: zeros where the party does not know it.
      rank: of the party.
      owner: of who knows it; -1: nobody, or there is one party alone.
    """
    ring = self._rings[variable.ring]
    if not variable.whole:
      return ring.shares(value, owner)[rank]
    like = ring.shares(np.zeros(variable.shape, INTEGERS), owner)[rank]
    return shares.of_numbers(value if value.dtype.kind == "u" else encoded(value), like)

  def _set(self, name, share, ring):
    self._rings[ring].runtime.SetVar(name, share)
    self._where[name] = ring


class Reference(Machine):
  """One process that computes in fixed point as two parties would, without their secrecy.

  Args:
    settings: of the engine.
  """

  def __init__(self, settings: Settings):
    libspu = core()
    rings = {}
    for ring in (WIDE, NARROW):
      desc = libspu.link.Desc()
      desc.add_party("alone", "alone")
      rings[ring] = Ring(settings, ring, libspu.link.create_mem(desc, 0), 1, "REF2K", 0)
    super().__init__(rings)

  def give(self, name: str, variable: Variable, value: np.ndarray) -> None:
    """Makes an input known to the engine, under its name, in the wide ring."""
    self._set(name, self._own(variable, value, 0, -1), WIDE)

  def value(self, name: str) -> np.ndarray:
    """The value of a variable, as the ring that holds it rounded it."""
    return self._rings[self._where[name]].open([self.share(name)])
