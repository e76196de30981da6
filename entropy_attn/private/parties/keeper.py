"""Material between a client and a server: asked for, made, kept by both, and used."""

from collections.abc import Iterator, Mapping
import hashlib
import pathlib
import re
import secrets

import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.parties import engine
from entropy_attn.private.parties.material import Material
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.store import Store
from entropy_attn.private.parties.words import Disagreement, Ending
from entropy_attn.private.program.spec import Settings, Spec


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
  """A SHA-256, in hexadecimal, of a model's weights: material of one model is none of another."""
  digest = hashlib.sha256()
  for name in sorted(weights):
    array = np.ascontiguousarray(weights[name])
    digest.update(f"{name} {array.dtype} {array.shape} ".encode())
    digest.update(array)
  return digest.hexdigest()


def _bound(spec: Spec, peer: str) -> dict[str, str]:
  """What material is made for: the model as both know it, and the other party."""
  return {"model": engine.digest(spec, Settings.of(spec, prepared=True), []), "peer": peer}


class ServersKeeper:
  """Material at the server, for one client.

  Args:
    folder: of the store.
    weights: their digest.
    peer: the client's certificate; empty where it has none.
    most: bytes that may be kept in all.

  Raises:
    UserError: where the folder cannot hold material.
  """

  def __init__(self, folder: pathlib.Path, weights: str, peer: str, most: float):
    self._store, self._weights, self._peer, self._most = Store(folder), weights, peer, most
    self._begun: set[str] = set()

  def make(self, session: Session, asked: Mapping) -> tuple[int, int]:
    """Makes what a client asks for, and keeps it; how many tokens it is for, and its bytes.

    Raises:
      Disagreement: where it asks for what is none.
      UserError: where it cannot be kept.
    """
    name, sizes = asked.get("set"), asked.get("prepare")
    if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{32}", name) or self._store.knows(name):
      raise Disagreement("the client names no new set of material", Ending.REQUEST)
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(n) is int and n > 0 for n in sizes):
      raise Disagreement("the client asks for material of no size", Ending.REQUEST)
    if sum(sizes) - 1 > session.spec.context_length:
      raise Disagreement("the client asks for material for more tokens than the model has positions", Ending.REQUEST)
    room = self._store.nbytes() < self._most
    session.connection.tell({"room": room})
    if not room:
      return 0, 0
    return sum(sizes) - 1, _keep(self._store, name, session.prepare(*sizes), self._bound_of(session))

  def take(self, session: Session, asked: Mapping) -> Material | None:
    """What a client would use for its next request, if it is here; the client is told whether."""
    found = None
    match asked.get("material"):
      case [str(name), int(part)]:
        self._begun.add(name)
        found = self._store.take(name, part, self._bound_of(session))
    session.connection.tell({"material": found is not None})
    return found

  def drop(self) -> None:
    """Deletes what is left of sets that were begun."""
    for name in self._begun:
      self._store.drop(name)

  def _bound_of(self, session: Session) -> dict[str, str]:
    return _bound(session.spec, self._peer) | {"weights": self._weights}


class ClientsKeeper:
  """Material at the client, of one server.

  Args:
    store: of all servers.
    peer: the server's certificate; empty where it has none.
  """

  def __init__(self, store: Store, peer: str):
    self._store, self._peer = store, peer

  def make(self, session: Session, length: int, tokens: int) -> int:
    """Has the server make one set with this party, and keeps it; returns its bytes on disk.

    Raises:
      UserError: where the server keeps no more, or it cannot be kept here.
    """
    name = secrets.token_hex(16)
    session.connection.tell({"prepare": [length, tokens], "set": name})
    if session.connection.hear().get("room") is not True:
      raise UserError("the server keeps as much material as it may (serve --material_most): use some, and ask again")
    return _keep(self._store, name, session.prepare(length, tokens), _bound(session.spec, self._peer))

  def waiting(self, spec: Spec, length: int, tokens: int) -> list[str]:
    """Sets for prompts of at least `length` tokens, and `tokens` in all if possible; the smallest first."""
    bound = _bound(spec, self._peer)
    parts = [part for part in self._store.waiting() if part.bound == bound]
    sizes = {part.of: (part.rows, sum(p.of == part.of for p in parts)) for part in parts if part.index == 0}
    fit = {name: size for name, size in sizes.items() if size[0] >= length}
    return sorted(fit, key=lambda name: (fit[name][1] < tokens, fit[name]))

  def used(self, session: Session, length: int, tokens: int) -> Iterator[Material | None]:
    """For the prompt and each token after it what was made for it, on both sides; None where nothing was.

    Before each is yielded the server is asked for the inference: `{"length": …, "material": …}`.
    """
    sets = self.waiting(session.spec, length, tokens)
    name = sets[0] if sets else None
    try:
      for i in range(tokens):
        asked, found = {"length": length if i == 0 else 1}, None
        if name is not None:
          found = self._store.take(name, i, _bound(session.spec, self._peer))
        if found is not None:
          asked["material"] = [name, i]
        session.connection.tell(asked)
        if found is not None and session.connection.hear().get("material") is not True:
          found = None
        yield found
    finally:
      if name is not None:
        self._store.drop(name)


def _keep(store: Store, name: str, parts: list[Material], bound: Mapping[str, str]) -> int:
  return sum(store.add(name, i, part, bound) for i, part in enumerate(parts))
