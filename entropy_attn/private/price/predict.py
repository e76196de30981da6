"""What one inference costs, from a config alone: bytes, rounds and latency, without running anything.

The model's own steps are traced on shapes (`count`), and each operation on secrets costs what `calibrate` measured.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math

import jax

from entropy_attn import config as config_lib
from entropy_attn.config import architecture_name
from entropy_attn.errors import UserError
from entropy_attn.private.price import count, memory
from entropy_attn.private.price import protocols as protocols_lib
from entropy_attn.private.price.account import grouped, layers, phases
from entropy_attn.private.price.lines import latencies
from entropy_attn.private.program import ahead as ahead_lib
from entropy_attn.private.program import build, ops, squares, types
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program.products import CrossTerms, Mix, Scores, Weigh
from entropy_attn.private.program.types import SECRET, SERVER, SHARED, WIDE, Variable

THREADS = 2  # of each party, by which the engine's keys are counted
_FIELDS = ("bytes", "rounds", "seconds")


def predict(
  spec: spec_lib.Spec,
  length: int,
  *,
  threads: int = THREADS,
  past: int = 0,
  tokens: int = 1,
  offline: bool = False,
  **options,
) -> dict:
  """What one inference costs, and that of the tokens after it.

  Args:
    length: new tokens of the prompt.
    threads: of each party: the engine makes keys for each. The seconds are those of two cores all the same.
    past: tokens before them whose keys and values are there.
    tokens: to generate: the prompt gives the first one, and each further one is an inference of one token.
    offline: whether products with the server's weights are made before there is a prompt.
    options: of `build.build`.

  Returns:
    total_bytes (both ways), rounds, seconds of computation, and by_operation and by_layer, as a profile has them;
    offline and online: the part before there is a prompt, and after; by_token: bytes, rounds and seconds of each
    inference, what was made before apart; and peak_rss_bytes of each party (see `memory`).

  Raises:
    UserError: for more positions than the model has.
  """
  needed = past + length + tokens - 1
  if needed > spec.context_length:
    raise UserError(f"{needed:,} tokens are more than the {spec.context_length:,} positions of this model")
  pricing = _Pricing(spec, prepared=offline)
  inferences = [(length, past), *((1, past + length + i) for i in range(tokens - 1))]
  programs = [build.build(spec, new, past=before, prepared=offline, **options) for new, before in inferences]
  found = [pricing.rows(program, offline) for program in programs]
  rings = {step.ring for step in programs[0].steps}
  before = pricing.session_rows(threads, rings)
  if offline:
    lengths = (length, *[1] * (tokens - 1))
    before += pricing.ahead_rows(ahead_lib.ahead(spec, lengths, past=past, layers=options.get("layers")))
  rows = before + [row for rows in found for row in rows]
  total = _total(rows)
  return {
    "total_bytes": total["bytes"],
    "rounds": total["rounds"],
    "seconds": total["seconds"],
    "by_operation": grouped(rows, "operation", _FIELDS),
    "by_layer": layers(rows, _FIELDS),
    **phases(rows, _FIELDS),
    "by_token": [_total(rows) for rows in found],
    "threads": threads,
    "peak_rss_bytes": memory.peak(pricing.encoded, cheap=pricing.cheap),
  }


class _Pricing:
  """Prices the programs of one model: equal steps once.

  Attributes:
    cheap: whether the engine has its cheap settings.
    encoded: bytes of the largest product with a private matrix until now; see `count.Counted`.
  """

  def __init__(self, spec: spec_lib.Spec, *, prepared: bool):
    self._settings, self._operations = spec_lib.Settings.of(spec, prepared=prepared), ops.engine_of(spec)
    self.cheap, self.encoded = spec.transforms.exponential == "squares", 0.0
    cheap = "verified" if self._settings.lsb_error else "cheap"
    self._protocols = protocols_lib.of_setting(cheap if self.cheap else "stock")
    self._known = {}

  def session_rows(self, threads: int, rings: Iterable[int]) -> list[dict]:
    """What a session costs before its first inference."""
    shares = _shares(build.set_up(threads, rings).inputs.values())
    keys = [self._protocols[ring].rated("set up", protocols_lib.set_up_sizes(ring, threads)) for ring in rings]
    return [_row("setup", "setup", cost) | {"offline": True} for cost in (shares, *keys)]

  def rows(self, program: types.Program, prepared: bool) -> list[dict]:
    """A row a step, and those of what is shared before and opened after.

    Args:
      prepared: whether products with the server's weights were made ahead.
    """
    rows, variables = self._steps(program, prepared)
    shared = [v for v in program.inputs.values() if v.owner == SHARED]
    rows.append(_row("embedding", "embedding", _shares(shared)))
    rows.append(_row("head", "reveal", _shares([variables[name] for name in program.outputs])))
    return rows

  def ahead_rows(self, program: types.Program) -> list[dict]:
    """A row a step of what is made before there is a prompt."""
    rows = [row | {"offline": True} for row in self._steps(program, False)[0]]
    for step, row in zip(program.steps, rows, strict=True):
      row["rounds"] += 0.5 * isinstance(step.operation, CrossTerms)  # both open some of it
    return rows

  def _steps(self, program: types.Program, prepared: bool) -> tuple[list[dict], dict[str, Variable]]:
    """A row a step, and all variables."""
    variables, rows = dict(program.inputs), []
    for step in program.steps:
      reads = tuple(variables[name] for name in step.reads)
      product = isinstance(step.operation, types.Product)
      if product and prepared:
        args = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in reads]
        shapes = jax.eval_shape(lambda *arrays, step=step: step(self._operations, *arrays), *args)
        cost = _masked(step, reads, shapes[0].size)
      else:
        counted = self._counted(step, reads)
        cost, shapes = counted.cost, counted.shapes
        self.encoded = max(self.encoded, counted.encoded)
      rows.append(_row(types.layer_name(step), step.kind, cost))
      for name, a in zip(step.writes, shapes, strict=True):
        variables[name] = Variable(a.shape, SECRET, "float32" if product else a.dtype.name)
    return rows, variables

  def _counted(self, step: types.Step, reads: tuple[Variable, ...]) -> count.Counted:
    """What a step costs that runs on the engine."""
    if isinstance(step.operation, types.Product):
      reads = tuple(dataclasses.replace(v, dtype="int32") for v in reads)  # as it is run: nothing is cut off
    key = (step.operation, reads, step.ring)
    if key not in self._known:
      run = lambda *arrays: step(self._operations, *arrays)
      self._known[key] = count.counted_of(run, reads, self._protocols[step.ring], self._settings)
    return self._known[key]


def _masked(step: types.Step, reads: tuple[Variable, ...], results: int) -> protocols_lib.Cost:
  """A product that was prepared: what it reads is opened under masks, and multiplied in the clear.

  Args:
    results: how many numbers it has.
  """
  secret = [v for v in reads if v.owner != SERVER]
  ways = 2 if isinstance(step.operation, types.SecretProduct) else 1
  summed = 1
  if isinstance(step.operation, (Weigh, Scores)):
    summed = reads[0].shape[-1]
  elif isinstance(step.operation, Mix):
    summed = reads[1].shape[1]
  of_integers = protocols_lib.MULTIPLICATIONS["matrix" if ways == 1 else "secret"]
  return protocols_lib.Cost(
    bytes=ways * sum(math.prod(v.shape) for v in secret) * step.ring / 8,
    rounds=0.5,
    seconds=results * summed / of_integers,
  )


def of_config(
  config,
  transforms: spec_lib.Transforms,
  length: int | None = None,
  *,
  reveal: str = "logits",
  top_k: int = spec_lib.TOP_K,
  error: float = squares.ERROR,
  **options,
) -> dict:
  """What one inference of a config's model costs, if every FFN that may vanish does.

  Args:
    length: of the prompt; None: 1 after a `past`, else what the context leaves beside the tokens after the prompt.
    reveal, top_k: what the client learns: see `spec.Spec`.
    error: of each layer's exponential.
    options: of `predict`.

  Returns:
    architecture, length, transforms, reveal, and what `predict` returns.

  Raises:
    UserError: where transforms contradict the architecture, or the vocabulary has fewer than top_k.
  """
  m = config.model
  exponential = squares.exponential(error, -12.0)  # no text tells how far scores reach
  spec = spec_lib.of_config(m, transforms, (exponential,) * m.num_layers).revealing(reveal, top_k)
  if length is None:
    length = 1 if options.get("past") else max(1, m.context_length - options.get("tokens", 1) + 1)
  return {
    "architecture": architecture_name(config),
    "length": length,
    "transforms": dataclasses.asdict(transforms),
    "reveal": reveal,
    **predict(spec, length, **options),
  }


def of_profile(profile: Mapping) -> dict:
  """What a profiled inference was to cost, from its config and its choices alone: as `predict` says.

  Args:
    profile: of `parties.measure`, or what JSON kept of it.
  """
  config = config_lib.base()
  config.model.update(profile["config"]["model"])
  choices = zip(profile["squares"], profile["lowest_exponents"], strict=True)
  exponentials = tuple(squares.with_squares(*choice) for choice in choices if choice[0] is not None)
  spec = spec_lib.of_config(config.model, spec_lib.recorded(profile["transforms"]), exponentials)
  return predict(spec, profile["length"], threads=profile["threads"], offline=profile.get("made_ahead", False))


def summary_of(config) -> dict:
  """The prediction that stands in a training run's summary.

  Returns:
    total_bytes, rounds, seconds, length, and what `lines.latencies` says.
  """
  found = of_config(config, spec_lib.transforms_for(config.model), offline=True)
  kept = {name: found[name] for name in ("total_bytes", "rounds", "seconds", "length")}
  return kept | latencies(found)


def _shares(variables: Iterable[Variable]) -> protocols_lib.Cost:
  """The cost of one party's shares of some variables, sent to the other at once."""
  return protocols_lib.Cost(bytes=sum(math.prod(v.shape) for v in variables) * WIDE / 8, rounds=0.5)


def _total(rows: Iterable[Mapping]) -> dict[str, float]:
  return {name: sum(row[name] for row in rows) for name in _FIELDS}


def _row(layer: str, operation: str, cost: protocols_lib.Cost) -> dict:
  return {"layer": layer, "operation": operation, "offline": False, **dataclasses.asdict(cost)}
