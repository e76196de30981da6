"""Generates text with a model that stays at its server, from a prompt that stays here.

    python -m entropy_attn.private.generate --server=127.0.0.1:9700 --prompt="import numpy as" --tokens=8

Weights and tokenizer are the server's; it sees neither the prompt nor what comes of it, but how many tokens both have.
"""

import re
import sys

from absl import flags as absl_flags

from entropy_attn import cli
from entropy_attn.data import decoding
from entropy_attn.errors import UserError
from entropy_attn.private import line

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  line.define_server()
  absl_flags.DEFINE_string("prompt", None, "Text to go on from.")
  absl_flags.DEFINE_list("prompt_ids", None, "Instead of --prompt: token ids, separated by commas.")
  absl_flags.DEFINE_integer("tokens", 8, "How many to generate at most.", lower_bound=1)
  absl_flags.DEFINE_float("temperature", 0.0, "0: the likeliest token; else drawn.", lower_bound=0.0)
  absl_flags.DEFINE_integer("seed", 0, "Of the drawing.", lower_bound=0)
  cli.define_path("material", None, "Folder of what private.prepare made with this server: it is used where it fits.")
  cli.define_json()
  line.define()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError unless there is one prompt, a server's address, and a line to it that hides what is said."""
  if (FLAGS.prompt is None) == (FLAGS.prompt_ids is None):
    raise UserError("give one of --prompt=TEXT and --prompt_ids=1,2,3")
  if not (FLAGS.prompt or FLAGS.prompt_ids):
    raise UserError("the prompt is empty: give at least one token")
  if FLAGS.prompt is not None and decoding.without_surrogates(FLAGS.prompt) != FLAGS.prompt:
    raise UserError("--prompt is not UTF-8: write it so, or give --prompt_ids")
  _prompt_ids()


def main() -> None:
  """Prints text as it comes, then what the prompt and each token took."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import client, engine, pair
  from entropy_attn.private.parties.store import Store
  from entropy_attn.private.parties.words import printable

  engine.core()
  tls, timeout, threads = line.party(server=False)
  store = None if FLAGS.material is None else Store(FLAGS.material)
  sock = line.connect(tls)
  with pair.ended_well("server"):
    result = client.generate(
      sock,
      _encode,
      FLAGS.tokens,
      temperature=FLAGS.temperature,
      seed=FLAGS.seed,
      threads=threads,
      timeout=timeout,
      store=store,
      on_token=lambda text: print(printable(text, keep="\n\t"), end="", flush=True),
    )
    cli.write_json(result)
    print()
    for i, spent in enumerate(result["spent"]):
      what = f"prompt of {spent['tokens']} tokens" if i == 0 else f"token {i}"
      how = ", prepared" if spent["prepared"] else ""
      print(
        f"{what}: {spent['bytes'] / 1e6:,.1f} MB, {spent['rounds']:,.0f} rounds, {spent['seconds']:.1f} s{how}",
        file=sys.stderr,
      )


def _encode(tokenizer) -> list[int]:
  """The ids of --prompt by a `data.tokenizer.Tokenizer`, or --prompt_ids."""
  ids = _prompt_ids()
  return tokenizer.encode_batch([FLAGS.prompt])[0] if ids is None else ids


def _prompt_ids() -> list[int] | None:
  if FLAGS.prompt_ids is None:
    return None
  if not all(re.fullmatch(" *[0-9]{1,9} *", part) for part in FLAGS.prompt_ids):
    raise UserError(f"--prompt_ids={','.join(FLAGS.prompt_ids)} are not numbers")
  return [int(part) for part in FLAGS.prompt_ids]


if __name__ == "__main__":
  cli.run(define_flags, main)
