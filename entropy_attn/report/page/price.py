"""The private cost of a run, split so that a page can compute its latency over any line and on any threads."""

from collections.abc import Mapping
import functools
import json
import pathlib

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.report.page.series import short
from entropy_attn.run import folder

_PHASES = ("offline", "online")


def of_run(workdir: pathlib.Path, config: ConfigDict) -> dict:
  """What one private inference of a run's model takes: of its newest profile of all layers, else as predicted.

  Returns:
    source (a sentence), length, threads (of each party, that the seconds are of), offline and online: by operation
    [bytes, rounds, seconds]; and keys: bytes of the keys of one, two and three threads a party. Or, where the model has
    no price, {"reason": why}.
  """
  try:
    found = _profile(workdir)
    keys = _keys(config.model.to_json())
    if found is None:
      found = _predicted(config.model.to_json())
  except UserError as error:
    return {"reason": str(error)}
  return {
    **{name: found[name] for name in ("source", "length", "threads")},
    **{phase: _operations(found[phase]["by_operation"]) for phase in _PHASES},
    "keys": list(keys),
  }


def lines() -> dict[str, tuple[float, float]]:
  """The usual lines by name: Mbit/s and round-trip time in ms."""
  from entropy_attn.private.price import lines as lines_lib

  return dict(lines_lib.LINES)


def lan() -> tuple[float, float]:
  """The first of `lines`."""
  return next(iter(lines().values()))


def latency(cost: Mapping, megabits: float, rtt_ms: float) -> dict[str, float]:
  """Seconds of both phases over a line, on as many threads as the cost is of: what the page shows first."""
  from entropy_attn.private.price import lines as lines_lib

  fields = ("total_bytes", "rounds", "seconds")
  total = lambda phase: {name: sum(of[i] for of in cost[phase].values()) for i, name in enumerate(fields)}
  return {phase: lines_lib.latency(total(phase), megabits, rtt_ms) for phase in _PHASES}


def size(cost: Mapping) -> dict[str, float]:
  """Bytes of both phases, both ways."""
  return {phase: sum(operation[0] for operation in cost[phase].values()) for phase in _PHASES}


def _operations(groups: Mapping) -> dict[str, list]:
  return {name: [short(of[field], 6) for field in ("bytes", "rounds", "seconds")] for name, of in groups.items()}


def _profile(workdir: pathlib.Path) -> dict | None:
  """The newest recorded private inference of the whole model, over no imitated line, whose seconds are computation."""
  whole = [profile for profile in folder.read_profiles(workdir) if _is_whole(profile)]
  if not whole:
    return None
  found = whole[-1]
  of = f"{found['length']} tokens, with {found['threads']} threads a party"
  return found | {"source": f"measured: a private inference of {of}"}


def _is_whole(profile: Mapping) -> bool:
  all_layers = profile.get("measured_layers") == profile.get("num_layers")
  return all_layers and set(_PHASES) <= set(profile) and not any(profile.get("link", {}).values())


@functools.lru_cache(maxsize=64)
def _predicted(model: str) -> dict:
  found = _of_config(model)
  return found | {"source": f"predicted for {found['length']} tokens, computed on two cores"}


@functools.lru_cache(maxsize=64)
def _keys(model: str) -> tuple[float, ...]:
  """Bytes of the session's keys for one, two and three threads a party; from two on they grow evenly."""
  found = [_of_config(model, length=1, threads=threads) for threads in (1, 2, 3)]
  return tuple(short(of["offline"]["by_operation"]["setup"]["bytes"], 6) for of in found)


def _of_config(model: str, length: int | None = None, **options) -> dict:
  # Here, not above: a report of runs alone, or a run without the extra, need not wait for it.
  from entropy_attn.private.price import predict
  from entropy_attn.private.program import spec

  config = config_lib.base()
  config.model.update(json.loads(model))
  return predict.of_config(config, spec.transforms_for(config.model), length, offline=True, **options)
