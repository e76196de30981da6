"""Makes with a server, ahead of prompts, what most of a private inference's work is.

    python -m entropy_attn.private.prepare --server=127.0.0.1:9700 --material=material --length=20 --tokens=8 --sets=3

Nothing of it depends on a prompt: only on the model, and on how long prompts are at most. Both sides keep their part,
encrypted; `generate --material` uses a set for each prompt, once. Making what is missing can be left to a timer.
"""

from absl import flags as absl_flags

from entropy_attn import cli
from entropy_attn.errors import UserError
from entropy_attn.private import line

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  line.define_server()
  cli.define_path("material", None, "Folder to keep it in.")
  absl_flags.DEFINE_integer("length", None, "Tokens of a prompt at most.", lower_bound=1)
  absl_flags.DEFINE_integer("tokens", 8, "To generate after it at most.", lower_bound=1)
  absl_flags.DEFINE_integer("sets", 1, "Makes what is missing until it suffices for so many prompts.", lower_bound=1)
  cli.define_json()
  line.define()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where it is not said where to keep it, or for what."""
  if FLAGS.material is None:
    raise UserError("--material=FOLDER is missing: where to keep it")
  if FLAGS.length is None:
    raise UserError("--length=N is missing: how many tokens a prompt has at most")


def main() -> None:
  """Makes what is missing; prints what each set took."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import client, engine, pair
  from entropy_attn.private.parties.store import Store

  engine.core()
  tls, timeout, threads = line.party(server=False)
  store = Store(FLAGS.material)
  sizes = {"length": FLAGS.length, "tokens": FLAGS.tokens, "sets": FLAGS.sets}
  sock = line.connect(tls)
  with pair.ended_well("server"):
    made = client.prepare(sock, store, **sizes, threads=threads, timeout=timeout, on_set=_say)
    cli.write_json({"made": made})
    if not made:
      print(f"{FLAGS.sets} sets for such prompts wait already")


def _say(made: dict) -> None:
  took = f"{made['bytes'] / 1e6:,.1f} MB, {made['rounds']:,.0f} rounds, {made['seconds']:.1f} s"
  what = f"a prompt of {FLAGS.length} tokens and {FLAGS.tokens} answers"
  print(f"{what}: {took}; {made['kept'] / 1e6:,.1f} MB kept", flush=True)


if __name__ == "__main__":
  cli.run(define_flags, main)
