"""Machines that run steps on named variables: what both parties share, and a reference that computes alone."""

from collections.abc import Mapping

import numpy as np

from entropy_attn.private.parties.engine import core
from entropy_attn.private.parties.shares import Ring, moved
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import NARROW, WIDE, Step, Variable


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
      if self._where[name] != step.ring:
        share = self.share(name)
        self.forget(name)
        self._set(name, moved(share, step.ring), step.ring)
    self._rings[step.ring].runtime.Run(core().Executable(step.kind, list(step.reads), list(step.writes), code))
    for name in step.writes:
      if self._where.get(name, step.ring) != step.ring:
        self.forget(name)
      self._where[name] = step.ring

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
    self._set(name, self._rings[WIDE].shares(value)[0], WIDE)

  def value(self, name: str) -> np.ndarray:
    """The value of a variable, as the ring that holds it rounded it."""
    return self._rings[self._where[name]].open([self.share(name)])
