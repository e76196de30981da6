"""Shows what the heads of a model do on a text, and whether the model is ready for private inference.

    python -m entropy_attn.inspect --model=runs/quickstart --text=essay.txt --html=essay.html
    git log | python -m entropy_attn.inspect --model=runs/quickstart --text=-

Entropies come out of the attention itself, without its matrices: texts may be long. They are read in windows of the
model's context, each half over the one before.
"""

from absl import flags

from entropy_attn import cli, paths
from entropy_attn.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_string("model", None, "A run's folder, a Hugging Face folder, or a Hub name such as gpt2.")
  flags.DEFINE_integer("step", None, "Of a run: its checkpoint; default: the newest.", lower_bound=0)
  cli.define_path("text", None, "A UTF-8 file, or - for standard input; default: the validation text of the run.")
  cli.define_path("html", None, "Also write a page to this file: the text, shaded by the entropy of any head.")
  flags.DEFINE_integer(
    "tokens_most", 4096, "Tokens from the start whose own entropies go into --json and --html.", lower_bound=1
  )
  flags.DEFINE_integer("judged", 8, "Sequences of the text that fixed point is judged on; 0: it is not.", lower_bound=0)
  cli.define_json()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError where no model is named, or a file cannot be read or written."""
  if FLAGS.model is None:
    raise UserError("--model=SOURCE is missing: a run's folder, a Hugging Face folder or a Hub name")
  if FLAGS.text is not None and str(FLAGS.text) != "-" and not FLAGS.text.exists():
    raise UserError(f"--text={FLAGS.text} does not exist: name a file, or - for standard input")
  if FLAGS.html is not None:
    paths.check_writable(FLAGS.html, "--html")


def main() -> None:
  """Prints what was found, and writes it where asked to."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.inspection import tables, whole
  from entropy_attn.report.page import text_page
  from entropy_attn.run import metrics, pretrained

  model = pretrained.load(FLAGS.model, FLAGS.step, what="--model")
  found = whole.inspect(model, FLAGS.text, kept=FLAGS.tokens_most, judged=FLAGS.judged)
  cli.write_json(metrics.to_json(whole.rounded(found)))
  print(tables.text(found))
  if FLAGS.html is not None:
    paths.write_text(FLAGS.html, text_page.render(found, tables.of_page(found)), "--html")
    print(f"\n{FLAGS.html}: {FLAGS.html.stat().st_size / 1e6:.2f} MB, to be opened in any browser")


if __name__ == "__main__":
  cli.run(define_flags, main)
