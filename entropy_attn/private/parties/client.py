"""A client of a private server: text from a prompt that stays here, by a model that stays there."""

import base64
from collections.abc import Callable, Iterator, Sequence
import pathlib
import socket
import tempfile
import time

import numpy as np

from entropy_attn import sampling
from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.data.stream import TextStream
from entropy_attn.errors import UserError
from entropy_attn.private.parties import pair, sockets
from entropy_attn.private.parties.bar import Steps
from entropy_attn.private.parties.keeper import ClientsKeeper
from entropy_attn.private.parties.material import Material
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.sockets import TlsSocket
from entropy_attn.private.parties.store import Store
from entropy_attn.private.parties.wire import Counts, PeerLost
from entropy_attn.private.program.spec import Spec
from entropy_attn.private.program.types import CLIENT


def generate(
  sock: socket.socket | TlsSocket,
  encode: Callable[[tokenizer_lib.Tokenizer], list[int]],
  tokens: int,
  *,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int = 0,
  stops: Sequence[str] = (),
  threads: int = 0,
  timeout: float = 30.0,
  store: Store | None = None,
  on_text: Callable[[str], None] = lambda text: None,
) -> dict:
  """Generates by asking a server for one token after the other.

  Args:
    sock: connected to the server.
    encode: the prompt's ids by the server's tokenizer.
    tokens: how many at most.
    temperature, top_k, top_p: see `sampling.next_token`; of the tokens that the server reveals.
    seed: of the drawing: in the clear, `decode.generate` draws the same, up to fixed point's error.
    stops: texts of which the first to be complete ends the generation; the server sees how many tokens that took.
    threads: of this party; 0: as many as it has cores, at most 8.
    timeout: seconds without a sign of the server after which it is given up.
    store: of material that was made ahead with this server, to be used; None: none.
    on_text: called with each piece of new text, in whole characters.

  Returns:
    prompt_ids, ids, text without the end-of-text token or stop string that ended it, and spent: for the prompt and each
    token its tokens, bytes, rounds and seconds, and whether material was there for it.

  Raises:
    UserError: for a prompt that does not fit, a temperature or top_k where the server reveals no or fewer logits, or
      more tokens than it has left for this client.
    PeerLost: where the server goes, or reveals what is no token.
    check.Impossible: where a result is not to be trusted.
  """
  bar = Steps("private", below=True)
  with pair.session(sock, CLIENT, threads=threads, timeout=timeout, on_step=bar) as (session, offered):
    _check_draws(temperature, top_k, session.spec)
    _check_quota(offered.get("answers"), tokens)
    tokenizer = _tokenizer(offered.get("tokenizer"))
    ids = list(encode(tokenizer))
    _check_fits(ids, tokens, session.spec)  # before the server is asked for anything
    rng, new, spent, asked = np.random.default_rng(seed), [], [], ids
    stream = TextStream(tokenizer.decode, ids, stops)
    for material in _asked(session, sock, store, len(ids), tokens):
      started, before = time.monotonic(), session.connection.counts()
      revealed = session.run(len(asked), np.asarray(asked), material=material)
      taken = _taken(session, before, started)
      spent.append({"tokens": len(asked), **taken, "prepared": material is not None})
      token = _chosen(session.spec, revealed, rng, temperature=temperature, top_k=top_k, top_p=top_p)
      new.append(token)
      asked = [token]
      bar.close()
      if token == tokenizer.end_id:
        break
      on_text(stream.push(token))
      if stream.stopped:
        break
    on_text(stream.close())
  return {"prompt_ids": ids, "ids": new, "text": stream.text, "spent": spent}


def prepare(
  sock: socket.socket | TlsSocket,
  store: Store,
  *,
  length: int,
  tokens: int,
  sets: int,
  threads: int = 0,
  timeout: float = 30.0,
  on_set: Callable[[dict], None] = lambda made: None,
) -> list[dict]:
  """Makes material with a server, until so many sets wait for such prompts.

  Args:
    sock: connected to the server.
    length: tokens of a prompt at most.
    tokens: to generate at most.
    sets: how many prompts it is to suffice for.
    threads, timeout: see `generate`.
    on_set: called with what `prepare` returns of each set, once both keep it.

  Returns:
    Of each set that was made: bytes, rounds and seconds of its making, and kept, its bytes on disk.

  Raises:
    UserError: for more tokens than the model has positions, or where the server keeps no (more) material.
    PeerLost: where the server goes.
  """
  bar, made = Steps("before the prompt"), []
  with pair.session(sock, CLIENT, threads=threads, timeout=timeout, on_step=bar) as (session, offered):
    if offered.get("material") is not True:
      raise UserError("this server keeps no material: it must serve with --material=FOLDER")
    _check_room(length, tokens, session.spec)
    keeper = ClientsKeeper(store, sockets.who(sock))
    while len(keeper.waiting(session.spec, length, tokens)) < sets:
      started, before = time.monotonic(), session.connection.counts()
      kept = keeper.make(session, length, tokens)
      made.append({**_taken(session, before, started), "kept": kept})
      bar.close()
      on_set(made[-1])
  return made


def _asked(session: Session, sock, store: Store | None, length: int, tokens: int) -> Iterator[Material | None]:
  """Asks the server for the prompt and then each token; what was made for it, or None."""
  if store is not None:
    yield from ClientsKeeper(store, sockets.who(sock)).used(session, length, tokens)
    return
  for i in range(tokens):
    session.connection.tell({"length": length if i == 0 else 1})
    yield None


def _taken(session: Session, before: Counts, started: float) -> dict:
  """Bytes both ways, rounds and seconds since both."""
  taken = session.connection.counts() - before
  return {
    "bytes": taken.sent + taken.received,
    "rounds": taken.chain / 2,
    "seconds": time.monotonic() - started,
  }  # fmt: skip


def _check_room(prompt: int, tokens: int, spec: Spec) -> None:
  room = spec.context_length - prompt
  if room < tokens - 1:
    raise UserError(
      f"the prompt has {prompt} tokens and --tokens={tokens} more do not fit the model's {spec.context_length} "
      f"positions: shorten the prompt or ask for {max(room + 1, 0)} or fewer"
    )


def _check_fits(ids: list[int], tokens: int, spec: Spec) -> None:
  sampling.check_prompt(ids, spec.vocab_size)
  _check_room(len(ids), tokens, spec)


def _check_draws(temperature: float, top_k: int, spec: Spec) -> None:
  if temperature and spec.reveal == "argmax":
    raise UserError(
      f"--temperature={temperature:g} draws from logits, and this server reveals the likeliest token alone: say "
      "--temperature=0, or have it serve with --reveal=top_k"
    )
  if spec.reveal == "top_k" and top_k > spec.top_k:
    raise UserError(f"--top_k={top_k} draws from more than the {spec.top_k} logits that this server reveals: lower it")


def _check_quota(left, tokens: int) -> None:
  if type(left) is int and left < tokens:
    ask = f"ask for --tokens={left}" if left > 0 else "ask again later"
    raise UserError(
      f"the server has {max(left, 0)} answer(s) left for this client now, fewer than --tokens={tokens}: {ask}"
    )


def _chosen(spec: Spec, revealed: np.ndarray, rng: np.random.Generator, **how) -> int:
  """The likeliest token, or one drawn, of what a spec reveals: see `build.build`."""
  if spec.reveal == "argmax":
    return _token(spec, revealed[0])
  if spec.reveal == "logits":
    return sampling.next_token(revealed[-1], rng, **how)
  logits_V = np.full(spec.vocab_size, -np.inf)
  logits_V[[_token(spec, token) for token in revealed[1]]] = revealed[0]
  return sampling.next_token(logits_V, rng, **how)


def _token(spec: Spec, opened: float) -> int:
  token = round(float(opened))  # a number in fixed point, where it came with logits
  if not 0 <= token < spec.vocab_size:
    raise PeerLost("it reveals what is no token")
  return token


def _tokenizer(sent) -> tokenizer_lib.Tokenizer:
  """The tokenizer in a server's offer."""
  try:
    suffix = {"tokenizer.json": ".json", "tokenizer.model": ".model"}[sent["name"]]
    content = base64.b64decode(sent["content"], validate=True)
  except (TypeError, KeyError, ValueError) as error:
    raise PeerLost("it sends no tokenizer") from error
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"tokenizer{suffix}"
    path.write_bytes(content)
    return tokenizer_lib.open_tokenizer(str(path))
