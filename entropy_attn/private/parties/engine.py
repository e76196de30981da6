"""The two-party engine, SecretFlow SPU (Cheetah): the only file that imports it; its settings and its compiler.

Its own JAX is never imported: the package's compiled core takes StableHLO text of ours.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
import threading
import types

import jax

from entropy_attn.errors import UserError
from entropy_attn.private.program.ops import engine_of
from entropy_attn.private.program.spec import Settings, Spec
from entropy_attn.private.program.types import (
  CLIENT,
  FRACTION,
  NARROW,
  SECRET,
  SERVER,
  Product,
  Program,
  Step,
  Variable,
)

RANKS = {SERVER: 0, CLIENT: 1}
INTEGERS = "int32"  # by which the engine calls a ring's integers, however large: it then cuts nothing off a product
_COMPILING = threading.Lock()  # the compiler says what is wrong on the process's standard error
# As in requirements-private.txt, which an installation has not. Without --no-deps it would bring another JAX.
_INSTALL = "pip install --no-deps spu==0.10.0.dev20251211, for CPython 3.11 on x86-64 Linux or an Apple-silicon Mac"


@functools.cache
def core():
  """The engine's compiled module, loaded once.

  Raises:
    UserError: if it is not installed, or not for this Python.
  """
  found = importlib.util.find_spec("spu")
  if found is None:
    raise UserError(f"the two-party engine is not installed: {_INSTALL}. private.cost needs none")
  if "spu" not in sys.modules:  # its __init__ would import another JAX
    package = types.ModuleType("spu")
    package.__path__, package.__spec__ = list(found.submodule_search_locations), found
    sys.modules["spu"] = package
  try:
    import spu.libspu as libspu
  except ImportError as error:
    raise UserError(f"the two-party engine does not load ({error}): {_INSTALL}") from error
  if not hasattr(libspu.link, "create_with_channels"):
    raise UserError(f"the installed two-party engine is too old: {_INSTALL}")
  options = libspu.logging.LogOptions()
  with tempfile.TemporaryDirectory(prefix="entropy_attn-") as folder:  # nobody reads the log: it keeps no name
    options.enable_console_logger, options.system_log_path = False, str(pathlib.Path(folder) / "engine.log")
    libspu.logging.setup_logging(options)
  return libspu


def version() -> str:
  """The installed engine's version.

  Raises:
    UserError: if none is installed, or it is not for this Python.
  """
  from importlib import metadata

  core()
  return metadata.version("spu")


def runtime_config(settings: Settings, ring: int, protocol: str = "CHEETAH", threads: int = 0):
  """The engine's configuration of one ring.

  Args:
    ring: its bits.
    protocol: by the engine's name.
    threads: of a party; 0: all cores of the party that has fewer.
  """
  config = core().RuntimeConfig()
  fields = {
    "protocol": protocol,
    "field": f"FM{ring}",
    "fxp_fraction_bits": FRACTION[ring],
    "fxp_exp_iters": settings.exp_iterations,
    "cheetah_2pc_config": {
      "enable_mul_lsb_error": settings.lsb_error and ring == NARROW,
      "ot_kind": settings.oblivious_transfer,
    },
    "experimental_enable_colocated_optimization": True,  # what one party owns stays with it
    "experimental_disable_mmul_split": True,  # the operations split their products themselves
    "max_concurrency": threads,
  }
  config.ParseFromJsonString(json.dumps(fields))
  return config


class Compiler:
  """Compiles each distinct step of a model's programs once.

  Args:
    spec: of the model.
  """

  def __init__(self, spec: Spec):
    self._ops = engine_of(spec)
    self._compiled: dict[tuple, bytes] = {}

  def program(self, program: Program) -> list[bytes]:
    """The code of every step, in order.

    Raises:
      UserError: for an operation that the engine does not know.
    """
    variables = dict(program.inputs)
    codes = []
    for step in program.steps:
      reads = [variables[name] for name in step.reads]
      code, shapes = self._step(step, tuple(reads))
      codes.append(code)
      variables |= {name: Variable(a.shape, SECRET, a.dtype.name) for name, a in zip(step.writes, shapes, strict=True)}
    return codes

  def _step(self, step: Step, reads: tuple[Variable, ...]):
    key = (step.operation, reads, step.ring)
    if key not in self._compiled:
      args = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in reads]
      fn = lambda *arrays: step(self._ops, *arrays)
      visibility = ["SECRET" if v.owner not in RANKS else "PRIVATE" for v in reads]
      as_run = [jax.ShapeDtypeStruct(a.shape, INTEGERS) for a in args] if isinstance(step.operation, Product) else args
      code = compile_function(fn, as_run, visibility)
      self._compiled[key] = code, jax.eval_shape(fn, *args)
    return self._compiled[key]


def compile_function(fn, args, visibility: list[str]) -> bytes:
  """The engine's code of a pure function.

  Args:
    fn: of arrays, traceable by JAX.
    args: their shapes and dtypes, `jax.ShapeDtypeStruct`.
    visibility: SECRET, PRIVATE or PUBLIC of each.

  Raises:
    UserError: for an operation that the engine does not know, with the line it comes from.
  """
  libspu = core()
  lowered = jax.jit(fn, keep_unused=True).trace(*args).lower(lowering_platforms=("cpu",))
  module = lowered.compiler_ir("stablehlo")
  text = re.sub(  # the engine has an erf of its own
    r"chlo\.erf (%\S+) : (tensor<[^>]*>) -> \2",
    r"stablehlo.custom_call @mhlo.erf(\1) {mhlo.attributes = {}, mhlo.version = 1 : i64} : (\2) -> \2",
    str(module),
  )
  unknown = re.search(r"\bchlo\.\w+", text)
  if unknown:
    raise UserError(f"the two-party engine knows no {unknown[0]}{_line_of(module, unknown[0])}")
  source = libspu.CompilationSource(
    libspu.SourceIRType.STABLEHLO, text.encode(), [getattr(libspu.Visibility, f"VIS_{v}") for v in visibility]
  )
  options = libspu.CompilerOptions()
  options.enable_optimize_denominator_with_broadcast = True  # x / y with y spread over an axis is x · (1/y)
  with _COMPILING, tempfile.TemporaryFile() as said, _standard_error_to(said):
    try:
      return libspu.compile(source, options)
    except RuntimeError as error:
      said.seek(0)
      named = re.search(r"\b(?:stablehlo|chlo|mhlo)\.\w+", said.read().decode(errors="replace") + str(error))
      name = named[0] if named else "an operation of this program"
      raise UserError(f"the two-party engine cannot run {name}{_line_of(module, name)}") from error


@contextlib.contextmanager
def _standard_error_to(file):
  """Sends to a file what compiled code says on standard error, which knows nothing of sys.stderr."""
  sys.stderr.flush()
  kept = os.dup(2)
  os.dup2(file.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def _line_of(module, name: str) -> str:
  """' (steps.py:12)' of the first operation of that name in a module, or of the function that it is in."""
  places = []

  def visit(op, place):
    place = next(re.finditer(r'"(?:[^"]*/)?(\w+\.py)":(\d+)', str(op.operation.location)), place)
    if op.operation.name == name and place:
      places.append(place)
    for region in op.operation.regions:
      for block in region.blocks:
        for inner in block.operations:
          visit(inner, place)

  visit(module.operation, None)
  return f" ({places[0][1]}:{places[0][2]})" if places else ""


def digest(spec: Spec, settings: Settings, codes: list[bytes]) -> str:
  """What both parties must agree upon before a secret leaves either: a SHA-256, in hexadecimal.

  It is of the spec, the engine's settings and version, the number formats, and the code of every step.
  """
  agreed = hashlib.sha256(spec.to_json().encode())
  agreed.update(repr((settings, FRACTION, version())).encode())
  for code in codes:
    agreed.update(hashlib.sha256(code).digest())
  return agreed.hexdigest()
