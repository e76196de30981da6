"""The transforms of least latency for a line: chosen by the cost model, one after the other."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses

from entropy_attn.private.price import lines, predict
from entropy_attn.private.program.spec import Transforms

# What is tried, all of it exact: what of it an architecture does not have changes nothing.
CHOICES = {
  "maximum": ("pairs", "fours"),
  "division": ("auto", "narrow", "late"),
  "causal_blocks": (True, False),
  "join_queries": (True, False),
  "diagonal": (False, True),
  "activation_ring": ("auto", "64"),
}
_BEFORE = 0.01  # what a second before the prompt counts for, where there is such
_WORTH = 1e-3  # the part of the latency that a change must save


def plan(
  config,
  transforms: Transforms,
  line: tuple[float, float],
  length: int | None = None,
  *,
  compute: float = 1.0,
  on_try: Callable[[str], None] = lambda what: None,
  **options,
) -> dict:
  """Changes transforms one at a time, each time the one that saves most, until none saves anything.

  What is made less is the latency with the prompt, and by a hundredth of its weight that before it.

  Args:
    transforms: to begin with; what is not among CHOICES stays.
    line: Mbit/s and round-trip time in ms.
    compute: see `lines.latency`.
    on_try: called with each change that is tried.
    options: of `predict.of_config`.

  Returns:
    transforms, the changes as --transforms reads them; chosen, each of them with its latencies, seconds, before and
    after it; and result, the prediction of the last.
  """

  def priced(changed: Transforms) -> tuple[float, float, Mapping]:
    found = predict.of_config(config, changed, length, **options)
    took = lines.latencies(found, {"line": line}, compute)
    total, online = took["latency_seconds"]["line"], took["online_latency_seconds"]["line"]
    return online + _BEFORE * (total - online), online, found

  begun = transforms
  weight, online, result = priced(begun)
  chosen = []
  while True:
    best = None
    for name, value in _others(transforms):
      on_try(text({name: value}))
      changed = dataclasses.replace(transforms, **{name: value})
      tried = priced(changed)
      if tried[0] < (weight if best is None else best[0]) * (1 - _WORTH * (best is None)):
        best = (*tried, changed, {name: value})
    if best is None:
      break
    chosen.append({"change": text(best[4]), "before": online, "after": best[1]})
    weight, online, result, transforms = best[:4]
  after = {name: getattr(transforms, name) for name in CHOICES}
  changes = {name: value for name, value in after.items() if value != getattr(begun, name)}
  return {"transforms": text(changes), "chosen": chosen, "result": result}


def text(changes: Mapping[str, object]) -> str:
  """Changes as --transforms reads them."""
  words = {True: "on", False: "off"}
  return ",".join(f"{name}={words.get(value, value)}" for name, value in changes.items())


def _others(transforms: Transforms) -> Iterator[tuple[str, object]]:
  for name, values in CHOICES.items():
    if name == "division" and transforms.softmax_ring != "32":
      values = ("late",)
    if name == "diagonal" and transforms.exponential == "engine":
      continue
    yield from ((name, value) for value in values if value != getattr(transforms, name))
