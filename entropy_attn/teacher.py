"""The teacher that a config names: a finished run, checked before it teaches, and its model on the mesh of training."""

import pathlib

from ml_collections import ConfigDict

from entropy_attn import paths
from entropy_attn.data.pipeline import Dataset
from entropy_attn.distill import Teacher
from entropy_attn.errors import UserError
from entropy_attn.run import checkpoint, folder, summary, text
from entropy_attn.train_step import abstract_state


def find(config: ConfigDict) -> pathlib.Path | None:
  """The folder of the run that distill.teacher names; None where it names none.

  Raises:
    UserError: where it is missing or has not finished, or its model does not fit the config's.
  """
  if not config.distill.teacher:
    return None
  workdir = paths.expand(config.distill.teacher, "distill.teacher")
  named = f"distill.teacher={config.distill.teacher}"
  try:
    of_run = folder.read_config(workdir)
  except UserError as error:
    raise UserError(f"{named}: {error}") from None
  outcome = summary.read(workdir)
  if outcome is None or outcome["status"] != "finished":
    has = f"diverged at step {outcome['step']}" if outcome else "has not finished"
    raise UserError(f"{named} {has}: name a run that was trained to its end")
  theirs, ours = of_run.model, config.model
  if theirs.vocab_size != ours.vocab_size:
    raise UserError(f"{named} has model.vocab_size={theirs.vocab_size}, not {ours.vocab_size}: their logits must match")
  held = theirs.context_length if theirs.temperature == "per_head_position" else theirs.max_positions
  if ours.context_length > held:
    raise UserError(f"{named} has {held} positions, and model.context_length={ours.context_length}: ask for fewer")
  sizes = (theirs.num_layers, theirs.num_heads), (ours.num_layers, ours.num_heads)
  if config.distill.entropy_weight and sizes[0] != sizes[1]:
    shapes = [f"{layers} × {heads}" for layers, heads in sizes]
    raise UserError(
      f"distill.entropy_weight={config.distill.entropy_weight} compares head by head: {named} has {shapes[0]} layers × "
      f"heads, and the model {shapes[1]}; set it to 0, or model.num_layers and model.num_heads to the teacher's"
    )
  return workdir


def check_text(workdir: pathlib.Path, dataset: Dataset) -> None:
  """Raises UserError where a teacher reads text with another tokenizer than the dataset, as far as both are known."""
  theirs, ours = text.read_tokenizer(workdir), dataset.tokenizer
  if theirs is not None and ours is not None and theirs.fingerprint != ours.fingerprint:
    raise UserError(
      f"distill.teacher={workdir} has another tokenizer than the text: its logits are of other tokens; train with "
      f"--config.data.tokenizer={workdir / theirs.file[0]}"
    )


def restore(workdir: pathlib.Path, config: ConfigDict, mesh) -> Teacher:
  """The model of a teacher's last step, laid out on the mesh in use.

  Args:
    config: of the student, whose implementation of attention is taken.

  Raises:
    UserError: where its checkpoint is not there or cannot be read.
  """
  of_run = folder.read_config(workdir)
  of_run.model.attention = config.model.attention
  last = summary.read(workdir)["step"]
  variables, _ = checkpoint.restore_variables(workdir, abstract_state(of_run, mesh), last)
  return Teacher(of_run, variables)
