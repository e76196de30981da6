"""Flags of what goes on from a prompt: the same for `generate`, in the clear, and `private.generate`."""

import re
import sys

from absl import flags

from entropy_attn import cli
from entropy_attn.data import decoding
from entropy_attn.errors import UserError, printable

FLAGS = flags.FLAGS


def define(tokens: int) -> None:
  """Defines --prompt, --prompt_ids, --tokens with this default, --temperature, --top_k, --top_p, --seed and --stop."""
  flags.DEFINE_string("prompt", None, "Text to go on from.")
  flags.DEFINE_list("prompt_ids", None, "Instead of --prompt: token ids, separated by commas.")
  flags.DEFINE_integer("tokens", tokens, "How many to generate at most.", lower_bound=1)
  flags.DEFINE_float("temperature", 0.0, "0: the likeliest token; else drawn.", lower_bound=0.0)
  flags.DEFINE_integer("top_k", 0, "Draw from so many likeliest tokens; 0: all.", lower_bound=0)
  flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens whose probabilities sum to this; 1: all.")
  flags.DEFINE_integer("seed", 0, "Of the drawing.", lower_bound=0)
  flags.DEFINE_multi_string("stop", [], "A text before which to end; may be given more than once.")
  cli.add_check(_check)


def _check() -> None:
  """Raises UserError unless there is one prompt, and a way to draw."""
  if (FLAGS.prompt is None) == (FLAGS.prompt_ids is None):
    raise UserError("give one of --prompt=TEXT and --prompt_ids=1,2,3")
  if not (FLAGS.prompt or FLAGS.prompt_ids):
    raise UserError("the prompt is empty: give at least one token")
  for name, texts in (("prompt", [FLAGS.prompt or ""]), ("stop", FLAGS.stop)):
    if any(decoding.without_surrogates(text) != text for text in texts):
      raise UserError(f"--{name} is not UTF-8: write it so{', or give --prompt_ids' if name == 'prompt' else ''}")
  if "" in FLAGS.stop:
    raise UserError("--stop='' would end before the first token: leave it out")
  if not 0 < FLAGS.top_p <= 1:
    raise UserError(f"--top_p={FLAGS.top_p:g} must be above 0 and at most 1")
  for name in ("top_k", "top_p"):
    if FLAGS[name].present and FLAGS.temperature == 0:
      raise UserError(f"--{name}={FLAGS[name].value:g} is for drawing, and --temperature=0 draws nothing: raise it")
  _prompt_ids()


def encode(tokenizer) -> list[int]:
  """The ids of --prompt by a `data.tokenizer.Tokenizer`, or --prompt_ids."""
  ids = _prompt_ids()
  return tokenizer.encode_batch([FLAGS.prompt])[0] if ids is None else ids


def drawing() -> dict[str, object]:
  """What the other flags say, as arguments of `decode.generate` and `private.parties.client.generate`."""
  names = ("temperature", "top_k", "top_p", "seed")
  return {"stops": tuple(FLAGS.stop), **{name: FLAGS[name].value for name in names}}


def show(text: str) -> None:
  """Prints new text at once on standard output: as it is, but for what could move a terminal's cursor."""
  if text:
    print(printable(text, keep="\n\t") if sys.stdout.isatty() else text, end="", flush=True)


def _prompt_ids() -> list[int] | None:
  if FLAGS.prompt_ids is None:
    return None
  if not all(re.fullmatch(" *[0-9]{1,9} *", part) for part in FLAGS.prompt_ids):
    raise UserError(f"--prompt_ids={','.join(FLAGS.prompt_ids)} are not numbers")
  return [int(part) for part in FLAGS.prompt_ids]
