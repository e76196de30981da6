"""The perplexity of a model in fixed point next to its own, on the run's own evaluation text.

    python -m entropy_attn.private.perplexity --checkpoint=runs/quickstart

By default one process computes as two parties would, in the same rings and with the same cuts (--how=reference);
--how=parties runs the real protocol, about as fast as private.profile for each sequence.
"""

from absl import flags as absl_flags

from entropy_attn import cli
from entropy_attn.errors import UserError
from entropy_attn.private import flags

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  flags.define_model()
  flags.define_plan()
  flags.define_transforms()
  absl_flags.DEFINE_integer("sequences", 8, "Validation sequences.", lower_bound=1)
  absl_flags.DEFINE_enum("how", "reference", ["reference", "parties"], "One process as two would, or two.")
  flags.define_error()
  cli.define_json()


def main() -> None:
  """Prints both perplexities and how far the logits lie apart."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import accuracy
  from entropy_attn.private.parties.check import Impossible

  model = flags.load_model()
  transforms = flags.transforms_of(model.config.model)
  try:
    result = accuracy.perplexity(model, transforms, sequences=FLAGS.sequences, how=FLAGS.how, error=flags.error())
  except Impossible as error:
    raise UserError(str(error)) from error
  cli.write_json(result)
  print(f"{result['model']}: {result['tokens']:,} tokens")
  print(f"perplexity {result['perplexity']:.4f}; in fixed point {result['private_perplexity']:.4f} "
        f"({100 * result['relative_difference']:+.3f} %)")  # fmt: skip
  print(f"the likeliest next token is the same at {100 * result['same_next_token']:.2f} % of positions; "
        f"largest error of a logit {result['max_abs_error']:.2g}")  # fmt: skip


if __name__ == "__main__":
  cli.run(define_flags, main)
