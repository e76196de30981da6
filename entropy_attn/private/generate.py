"""Generates text with a model that stays at its server, from a prompt that stays here.

    python -m entropy_attn.private.generate --server=127.0.0.1:9700 --prompt="import numpy as" --tokens=8

Weights and tokenizer are the server's; it sees neither the prompt nor what comes of it, but how many tokens both have.
"""

import base64
from collections.abc import Callable
import pathlib
import sys
import tempfile
import time

from absl import flags
import numpy as np

from entropy_attn import cli
from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.errors import UserError
from entropy_attn.private import engine, party, sockets, wire
from entropy_attn.private import spec as spec_lib
from entropy_attn.private.program import CLIENT
from entropy_attn.private.show import Steps


def generate(
  connection: wire.Connection,
  encode: Callable[[tokenizer_lib.Tokenizer], list[int]],
  tokens: int,
  *,
  temperature: float = 0.0,
  seed: int = 0,
  threads: int = 0,
  on_token: Callable[[str], None] = lambda text: None,
) -> dict:
  """Asks a server for tokens.

  Args:
    encode: the prompt's ids by the server's tokenizer.
    tokens: how many at most.
    temperature: 0: the likeliest token; else one drawn from softmax(logits / temperature).
    seed: of the drawing.
    on_token: called with each new token's text.

  Returns:
    prompt and generated ids, text, and for the prompt and each token: bytes, rounds, seconds.

  Raises:
    UserError: for a prompt that does not fit.
    wire.PeerLost: where the server goes.
    party.Impossible: where a result is not to be trusted.
  """
  theirs = party.greet(connection, CLIENT, threads=threads)
  spec = spec_lib.Spec.from_json(str(theirs.get("spec")))
  tokenizer = _tokenizer(theirs.get("tokenizer"))
  ids = list(encode(tokenizer))
  room = spec.context_length - len(ids)
  if not ids:
    raise UserError("the prompt is empty: give at least one token")
  if room < tokens - 1:
    raise UserError(
      f"the prompt has {len(ids)} tokens and --tokens={tokens} more do not fit the model's {spec.context_length} "
      f"positions: shorten the prompt or ask for {max(room + 1, 0)} or fewer"
    )
  bar = Steps("private")
  session = party.Session(connection, CLIENT, spec, threads=theirs["threads"], on_step=bar)
  rng, new, spent, asked = np.random.default_rng(seed), [], [], ids
  for _ in range(tokens):
    connection.tell({"length": len(asked)})
    started, before = time.monotonic(), connection.counts()
    logits = session.run(len(asked), np.asarray(asked))
    taken = connection.counts() - before
    spent.append({
      "tokens": len(asked),
      "bytes": taken.sent + taken.received,
      "rounds": taken.chain / 2,
      "seconds": time.monotonic() - started,
    })  # fmt: skip
    token = _chosen(logits[-1], temperature, rng)
    new.append(token)
    asked = [token]
    bar.close()
    on_token(tokenizer.decode([token]))
    if token == tokenizer.end_id:
      break
  connection.tell({"done": True})
  connection.close()
  return {"prompt_ids": ids, "ids": new, "text": tokenizer.decode(new), "spent": spent}


def _chosen(logits_V: np.ndarray, temperature: float, rng) -> int:
  if temperature == 0:
    return int(np.argmax(logits_V))
  scaled = np.asarray(logits_V, np.float64) / temperature
  probabilities = np.exp(scaled - scaled.max())
  return int(rng.choice(len(scaled), p=probabilities / probabilities.sum()))


def _tokenizer(sent) -> tokenizer_lib.Tokenizer:
  try:
    suffix = {"tokenizer.json": ".json", "tokenizer.model": ".model"}[sent["name"]]
    content = base64.b64decode(sent["content"], validate=True)
  except (TypeError, KeyError, ValueError) as error:
    raise wire.PeerLost("it sends no tokenizer") from error
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"tokenizer{suffix}"
    path.write_bytes(content)
    return tokenizer_lib.open_tokenizer(str(path))


def _address(text: str) -> tuple[str, int]:
  host, _, port = text.rpartition(":")
  if not host or not port.isdigit():
    raise UserError(f"--server={text!r} has not the form host:port")
  return host, int(port)


if __name__ == "__main__":
  server_flag = flags.DEFINE_string("server", "127.0.0.1:9700", "host:port of private.serve.")
  prompt_flag = flags.DEFINE_string("prompt", None, "Text to go on from.")
  ids_flag = flags.DEFINE_list("prompt_ids", None, "Instead of --prompt: token ids, separated by commas.")
  tokens_flag = flags.DEFINE_integer("tokens", 8, "How many to generate at most.", lower_bound=1)
  temperature_flag = flags.DEFINE_float("temperature", 0.0, "0: the likeliest token; else drawn.", lower_bound=0.0)
  seed_flag = flags.DEFINE_integer("seed", 0, "Of the drawing.")
  json_flag = flags.DEFINE_string("json", None, "Also write the figures to this file.")
  flags_of_party = party.define_flags()

  def encode(tokenizer: tokenizer_lib.Tokenizer) -> list[int]:
    if ids_flag.value is not None:
      try:
        return [int(part) for part in ids_flag.value]
      except ValueError as error:
        raise UserError(f"--prompt_ids={','.join(ids_flag.value)} are not numbers") from error
    return tokenizer.encode_batch([prompt_flag.value])[0]

  def main() -> None:
    engine.core()
    if (prompt_flag.value is None) == (ids_flag.value is None):
      raise UserError("give one of --prompt=TEXT and --prompt_ids=1,2,3")
    tls, timeout, threads = party.read_flags(flags_of_party)
    sock = sockets.connect(*_address(server_flag.value), tls)
    with party.ended_well("server"):
      connection = wire.Connection(sock, timeout=timeout)
      with party.watched(connection, "server"):
        result = generate(
          connection,
          encode,
          tokens_flag.value,
          temperature=temperature_flag.value,
          seed=seed_flag.value,
          threads=threads,
          on_token=lambda text: print(text, end="", flush=True),
        )
      print()
      for i, spent in enumerate(result["spent"]):
        what = f"prompt of {spent['tokens']} tokens" if i == 0 else f"token {i}"
        print(
          f"{what}: {spent['bytes'] / 1e6:,.1f} MB, {spent['rounds']:,.0f} rounds, {spent['seconds']:.1f} s",
          file=sys.stderr,
        )
      cli.write_json(json_flag.value, result)

  cli.run(main)
