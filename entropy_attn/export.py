"""Writes a model as a folder of Hugging Face files: weights, settings, tokenizer and a model card.

    python -m entropy_attn.export --checkpoint=runs/baseline --to=exported/baseline

A model of the baseline's form is a GPT-2 and opens in `transformers` with the same logits; any other keeps the fields
of its architecture, and `entropy_attn.load` opens it bit for bit. The folder is written whole or not at all.
"""

from absl import flags

from entropy_attn import cli
from entropy_attn.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_checkpoint()
  cli.define_path("to", None, "The folder to make; one that holds anything but an earlier export is refused.")
  flags.DEFINE_enum(
    "format",
    "auto",
    ["auto", "gpt2", "entropy_attn"],
    "auto: gpt2 where the model is one, with what folds into its weights; entropy_attn: as it is, bit for bit.",
  )
  cli.define_json()
  cli.add_check(_check_flags)


def _check_flags() -> None:
  if FLAGS.checkpoint is None:
    raise UserError("--checkpoint=SOURCE is missing: a run's folder, a Hugging Face folder or a Hub name")
  if FLAGS.to is None:
    raise UserError("--to=FOLDER is missing: the folder to make")


def main() -> None:
  """Writes the folder; says what is in it."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn import counts
  from entropy_attn.interop import card, fold, write
  from entropy_attn.progress import say
  from entropy_attn.run import folder, pretrained, summary, text

  write.check_free(FLAGS.to, "--to")
  model = pretrained.load(FLAGS.checkpoint, FLAGS.step, what="--checkpoint")
  form = write.form_of(model.variables, model.config, FLAGS.format)
  folded = fold.folded(model.config.model) if form == "gpt2" else []
  made_of, reached = {"step": model.step} if model.folder else {}, None
  if model.folder is not None:
    made_of |= folder.made_by(model.folder)
    outcome = summary.read(model.folder)
    reached = outcome if outcome and outcome["step"] == model.step else None
  try:
    tokenizer = model.tokenizer if model.folder is None else text.read_tokenizer(model.folder)
  except UserError as error:
    tokenizer = None
    say(f"note: {error}")
  if tokenizer is None:
    say("note: no tokenizer is written: the model has none of its own")
  parameters = counts.parameter_count(model.config.model)
  page = card.text(
    model.config, form=form, folded=folded, parameters=parameters, summary=reached, made_of=made_of
  )  # fmt: skip
  names = write.write(
    FLAGS.to, model.variables, model.config, form=form, card=page, made_of=made_of, tokenizer=tokenizer
  )  # fmt: skip
  cli.write_json({"format": form, "folded": folded, "files": names, "parameters": parameters, **made_of})
  opens = "transformers and entropy_attn.load open it" if form == "gpt2" else "entropy_attn.load opens it"
  print(f"{model.description} → {FLAGS.to} ({form}): {opens}")
  if folded:
    print(f"folded into the weights: {', '.join(folded)}")


if __name__ == "__main__":
  cli.run(define_flags, main)
