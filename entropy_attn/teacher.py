"""The teacher that a config names: checked before it teaches, and its model on the mesh of training."""

from ml_collections import ConfigDict

from entropy_attn import origin as origin_lib
from entropy_attn.distill import Teacher
from entropy_attn.errors import UserError
from entropy_attn.origin import Origin
from entropy_attn.run import summary


def find(config: ConfigDict) -> Origin | None:
  """The model that distill.teacher names; None where it names none.

  Raises:
    UserError: where it is missing, a run that has not finished, or does not fit the config's model.
  """
  if not config.distill.teacher:
    return None
  origin = origin_lib.find("distill.teacher", config.distill.teacher)
  named, theirs, ours = origin.named, origin.config.model, config.model
  outcome = summary.read(origin.folder) if origin.folder else {"status": "finished"}
  if outcome is None or outcome["status"] != "finished":
    has = f"diverged at step {outcome['step']}" if outcome else "has not finished"
    raise UserError(f"{named} {has}: name a run that was trained to its end")
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
  return origin


def restore(origin: Origin, config: ConfigDict, mesh) -> tuple[Teacher, dict]:
  """The model of a teacher (of a run: at its last step), laid out on the mesh in use, and its identity.

  Args:
    config: of the student, whose implementation of attention is taken.

  Raises:
    UserError: where its checkpoint is not there or cannot be read.
  """
  of_teacher = origin.config.copy_and_resolve_references()
  of_teacher.model.attention = config.model.attention
  last = summary.read(origin.folder)["step"] if origin.folder else None
  variables, step = origin_lib.restore(origin, mesh, last)
  return Teacher(of_teacher, variables), origin_lib.identity(origin, variables, step)
