"""What can be made of an inference before there is a prompt: of all its products, most of the work.

Of x W with the server's matrix, a random r of the client goes through the engine in the place of x. Of x y of secrets,
random masks of which each party knows a share; where they are multiplied number by number, the engine makes no more of
them than what neither party has alone (`products.CrossTerms`).
"""

from collections.abc import Sequence
import dataclasses

from entropy_attn.private.program.build import build, share
from entropy_attn.private.program.products import CrossTerms, Weigh
from entropy_attn.private.program.spec import Spec
from entropy_attn.private.program.types import (
  SECRET,
  SERVER,
  SHARED,
  ElementwiseProduct,
  Program,
  SecretProduct,
  Step,
  Variable,
)


def ahead(spec: Spec, lengths: Sequence[int], *, past: int = 0, layers: int | None = None) -> Program:
  """What two parties run to prepare some inferences, each after those before it.

  Its steps write products of masks: one of all rows of all inferences for a matrix of the server, under the product's
  name; one an inference for secrets, under `part_name`. Its inputs but the matrices are random.

  Args:
    lengths: new tokens of each inference.
    past: tokens before the first.
    layers: the first so many alone; None: all.

  Raises:
    UserError: for more positions than the model has.
  """
  programs = [
    build(spec, length, past=past + sum(lengths[:i]), layers=layers, prepared=True) for i, length in enumerate(lengths)
  ]
  inputs, steps = {}, []
  for step in programs[0].steps:
    if isinstance(step.operation, Weigh):
      rows = sum(program.products[step.writes[0]][0][0] for program in programs)
      _weigh(step, rows, programs[0], inputs, steps)
  for i, program in enumerate(programs):
    for step in program.steps:
      if isinstance(step.operation, SecretProduct):
        _multiply(step, i, program, inputs, steps)
  return Program(inputs, tuple(steps), (), ())


def part_name(inference: int, product: str) -> str:
  """What stands for a product of secrets of one inference in the program of `ahead`."""
  return f"{inference}: {product}"


def _weigh(step: Step, rows: int, program: Program, inputs: dict, steps: list) -> None:
  (name,), (_, matrix) = step.writes, step.reads
  K, L = program.inputs[matrix].shape
  inputs |= {matrix: program.inputs[matrix], f"r {name}": Variable((rows, K), SHARED, whole=True)}
  at_a_time = {"row_block": share(rows, K * L), "column_block": share(L, K * rows)}
  blocks = {block: size for block, size in at_a_time.items() if getattr(step.operation, block) is not None}
  operation = dataclasses.replace(step.operation, **blocks)
  steps.append(dataclasses.replace(step, operation=operation, reads=(f"r {name}", matrix)))


def _multiply(step: Step, inference: int, program: Program, inputs: dict, steps: list) -> None:
  name = part_name(inference, step.writes[0])
  shapes, operation = program.products[step.writes[0]], step.operation
  owners = (SECRET, SECRET)
  if isinstance(operation, ElementwiseProduct):
    operation, owners = CrossTerms(operation, shapes), (SERVER, SHARED)
    shapes = 2 * ((operation.length,),)
  reads = tuple(f"r{i} {name}" for i in range(2))
  for read, shape, owner in zip(reads, shapes, owners, strict=True):
    inputs[read] = Variable(shape, owner, whole=True, ring=step.ring)
  steps.append(dataclasses.replace(step, operation=operation, reads=reads, writes=(name,)))
