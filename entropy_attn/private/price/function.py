"""What any JAX function of secrets costs, operation by operation: a softmax or an activation of one's own.

The engine's exponential has eight squarings here, as it comes: what a model's own transforms make cheap is no part of a
function. Keys, and the sharing of what goes in and comes out, are not counted.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re

from entropy_attn.errors import UserError, check_choice
from entropy_attn.private.price import count
from entropy_attn.private.price.account import grouped
from entropy_attn.private.price.protocols import Cost, of_setting
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, SECRET, SERVER, WIDE, Variable

OWNERS = (SECRET, SERVER, CLIENT)
DTYPES = ("float32", "int32")
SETTINGS = {"cheap": Settings(8, False, "EMP_Ferret"), "stock": Settings(8, False, "YACL_Ferret")}


def parse_shape(text: str) -> Variable:
  """An argument: 128x768, 768x64:server, 12:client, 128x128:int32; secret and float32 where nothing else is said.

  Raises:
    UserError: for anything else.
  """
  shape, *rest = text.split(":")
  if not re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*|scalar", shape):
    raise UserError(f"--shape={text!r} has not the form 128x768, or 768x64:server, or scalar")
  owner, dtype = SECRET, "float32"
  for part in rest:
    check_choice(f"--shape={text}: the part", part, (*OWNERS, *DTYPES))
    owner, dtype = (part, dtype) if part in OWNERS else (owner, part)
  return Variable(() if shape == "scalar" else tuple(map(int, shape.split("x"))), owner, dtype)


def price(function: Callable, arguments: Sequence[Variable], *, setting: str, rules: Mapping[str, Callable]) -> dict:
  """What a function of arrays costs.

  Args:
    arguments: as `parse_shape` gives them.
    setting: one of SETTINGS: cheap products may be wrong in their last bit.
    rules: costs of one's own: by the name of an operation in the trace, or of a function under jax.jit, a function of
      `count.Use` to `protocols.Cost`.

  Returns:
    total_bytes (both ways), rounds, seconds, and by_operation.

  Raises:
    UserError: where the function fails on such arguments, or for an operation whose cost nobody measured.
  """
  for name, rule in rules.items():
    if not callable(rule):
      raise UserError(f"--rules: {name} is no function of an operation's use to its cost")
  try:
    counted = count.counted_of(function, arguments, of_setting(setting)[WIDE], SETTINGS[setting], rules)
  except UserError:
    raise
  except (Exception, SystemExit) as error:  # whatever a user's code raises
    line = re.sub(r"\s+", " ", str(error)).strip()[:300]
    raise UserError(f"--function fails on these shapes: {type(error).__name__}: {line}") from error
  for name, cost in counted.costs:
    if not isinstance(cost, Cost):
      raise UserError(f"--rules: that of {name} returns {type(cost).__name__}, not a protocols.Cost")
  rows = [{"operation": name, **dataclasses.asdict(cost)} for name, cost in counted.costs]
  fields = [field.name for field in dataclasses.fields(Cost)]
  total = dataclasses.asdict(counted.cost)
  return {
    "total_bytes": total["bytes"],
    "rounds": total["rounds"],
    "seconds": total["seconds"],
    "by_operation": grouped(rows, "operation", fields),
  }
