"""Generates text with a model that stays at its server, from a prompt that stays here.

    python -m entropy_attn.private.generate --server=127.0.0.1:9700 --prompt="import numpy as" --tokens=8

Weights and tokenizer are the server's; it sees neither the prompt nor what comes of it, but how many tokens both have.
"""

import sys

from absl import flags as absl_flags

from entropy_attn import cli, prompting
from entropy_attn.private import line

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  line.define_server()
  prompting.define(tokens=8)
  cli.define_path("material", None, "Folder of what private.prepare made with this server: it is used where it fits.")
  cli.define_json()
  line.define()


def main() -> None:
  """Prints text as it comes, then what the prompt and each token took."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import client, engine, pair
  from entropy_attn.private.parties.store import Store

  engine.core()
  tls, timeout, threads = line.party(server=False)
  store = None if FLAGS.material is None else Store(FLAGS.material)
  sock = line.connect(tls)
  with pair.ended_well("server"):
    result = client.generate(
      sock,
      prompting.encode,
      FLAGS.tokens,
      **prompting.drawing(),
      threads=threads,
      timeout=timeout,
      store=store,
      on_text=prompting.show,
    )
    cli.write_json(result)
    print(flush=True)
    for i, spent in enumerate(result["spent"]):
      what = f"prompt of {spent['tokens']} tokens" if i == 0 else f"token {i}"
      how = ", prepared" if spent["prepared"] else ""
      print(
        f"{what}: {spent['bytes'] / 1e6:,.1f} MB, {spent['rounds']:,.0f} rounds, {spent['seconds']:.1f} s{how}",
        file=sys.stderr,
      )


if __name__ == "__main__":
  cli.run(define_flags, main)
