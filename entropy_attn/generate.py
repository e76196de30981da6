"""Goes on from a prompt with a trained model, in the clear, and says what each head attends to.

    python -m entropy_attn.generate --checkpoint=runs/quickstart --prompt="def __init__(self" --temperature=0.8

The new text alone is on standard output. --json=FILE has, of each token, its probability and every head's entropy.
"""

from absl import flags

from entropy_attn import cli, prompting
from entropy_attn.errors import UserError
from entropy_attn.progress import say

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_checkpoint()
  prompting.define(tokens=100)
  cli.define_json()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where no model is named."""
  if not FLAGS.checkpoint:
    raise UserError("--checkpoint=SOURCE is missing: a run's folder, a Hugging Face folder or a Hub name")


def main() -> None:
  """Prints text as it comes, then what it took."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn import decode
  from entropy_attn.run import pretrained

  model = pretrained.load(FLAGS.checkpoint, FLAGS.step, what="--checkpoint")
  say(model.description)
  decoder = decode.Decoder(model)
  ids = prompting.encode(model.tokenizer)
  result = decode.generate(decoder, ids, FLAGS.tokens, **prompting.drawing(), on_text=prompting.show)
  cli.write_json(result)
  print(flush=True)
  if result["ended"] == "positions":
    say(f"note: ended where the model can read no more: it has {decoder.positions:,} positions")
  say(_took(result))


def _took(result: dict) -> str:
  seconds, count, rate = result["seconds"], len(result["ids"]), result["tokens_per_second"]
  speed = "" if rate is None else f", {rate:,.0f} tokens/s" if rate >= 10 else f", {rate:.1f} tokens/s"
  return (
    f"prompt of {len(result['prompt_ids'])} tokens: {seconds['prompt']:.2f} s; {count} new{speed}; "
    f"compiling took {seconds['compile']:.1f} s"
  )


if __name__ == "__main__":
  cli.run(define_flags, main)
