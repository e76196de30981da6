"""One private inference by two processes of this machine, accounted by operation and by layer."""

import collections
from collections.abc import Hashable, Sequence
import dataclasses

import numpy as np

from entropy_attn.config import architecture_name
from entropy_attn.errors import UserError
from entropy_attn.private.parties import engine
from entropy_attn.private.parties.pair import DIRECT, Link, two_processes
from entropy_attn.private.parties.session import Record
from entropy_attn.private.price import account
from entropy_attn.private.program import squares
from entropy_attn.private.program.build import build
from entropy_attn.private.program.prepare import prepare
from entropy_attn.private.program.spec import Transforms
from entropy_attn.private.program.types import CLIENT, SERVER, Program
from entropy_attn.run import folder
from entropy_attn.run.pretrained import Pretrained

_FIELDS = ("server_to_client", "client_to_server", "bytes", "messages", "rounds", "seconds")
_TOTALS = ("bytes", "rounds", "seconds")


def profile(
  model: Pretrained,
  transforms: Transforms,
  *,
  length: int,
  layers: int | None = None,
  error: float = squares.ERROR,
  offline: bool = True,
  link: Link = DIRECT,
  threads: int = 0,
  show: bool = True,
) -> dict:
  """One inference in two processes, and what it took.

  Args:
    length: tokens of the prompt.
    layers: how many of the layers to run; the rest are taken to cost what an equal layer did. None: all.
    error: of each layer's exponential.
    offline: whether products with the weights are made before the prompt.
    link: a line to imitate.
    threads: of each party; 0: all cores, at most 8.
    show: a progress bar.

  Returns:
    total_bytes, rounds, seconds, max_abs_error, peak_rss_bytes, by_operation, by_layer, offline and online apart, and
    how they came about.

  Raises:
    UserError: for what the user can mend, and where the result is impossible.
  """
  c = model.config.model
  if not 0 < length <= c.context_length:
    raise UserError(f"--length={length} must be between 1 and the model's {c.context_length} positions")
  if layers is not None and not 2 <= layers <= c.num_layers:
    raise UserError(f"--layers={layers} must be between 2 and the model's {c.num_layers} layers")
  engine.core()
  private, exact, tightest = prepare(model, transforms, length, error)
  tokens_N = model.sequences(1, length)[0]
  reference = np.asarray(exact.logits(tokens_N, layers=layers))
  del exact  # its weights, before the parties need the memory
  options = {"link": link, "threads": threads, "show": show, "origin": origin(model)}
  results = two_processes(private, tokens_N[None], **options, offline=offline, layers=layers)
  part, whole = build(private.spec, length, layers=layers), build(private.spec, length)
  rows = _merged(results[SERVER]["records"], results[CLIENT]["records"])
  measured = _totals(rows)
  rows, extrapolation_exact = _extrapolated(rows, part, whole, c.num_layers)
  total = _totals(rows)
  (logits,) = results[CLIENT]["logits"]
  exponentials = [layer.exponential for layer in private.spec.layers]
  return {
    "architecture": architecture_name(model.config),
    "model": model.description,
    "config": {"model": c.to_dict()},
    "num_layers": c.num_layers,
    "num_heads": c.num_heads,
    "d_model": c.d_model,
    "vocab_size": c.vocab_size,
    "length": length,
    "transforms": dataclasses.asdict(private.spec.transforms),
    "squares": [len(exponential.offsets) if exponential else None for exponential in exponentials],
    "lowest_exponents": [exponential.low if exponential else None for exponential in exponentials],
    "kept_ffns": list(private.kept_ffns),
    "condition_numbers": list(private.condition_numbers),
    "tightest_range": dataclasses.asdict(tightest) | {"place": tightest.place, "spare_bits": tightest.spare_bits},
    "total_bytes": total["bytes"],
    "rounds": total["rounds"],
    "seconds": total["seconds"],
    "measured_layers": layers or c.num_layers,
    "measured_bytes": measured["bytes"],
    "extrapolation_exact": extrapolation_exact,
    "max_abs_error": float(np.max(np.abs(logits - reference[-len(logits) :]))),
    "largest_logit": float(np.max(np.abs(reference))),
    "same_next_token": bool(np.argmax(logits[-1]) == np.argmax(reference[-1])),
    "peak_rss_bytes": {role: results[role]["peak_rss_bytes"] for role in (SERVER, CLIENT)},
    "by_operation": account.grouped(rows, "operation", _FIELDS),
    "by_layer": account.layers(rows, _FIELDS),
    "made_ahead": offline,
    "remade": results[CLIENT]["remade"],
    **account.phases(rows, _FIELDS),
    "link": dataclasses.asdict(link),
    "threads": results[CLIENT]["threads"],
    "environment": folder.describe() | {"engine": engine.version()},
  }


def origin(model: Pretrained) -> str:
  """Where a model's sequences come from, so that an impossible result can be had again."""
  return f"{model.description}, seed {model.config.train.seed}"


def _totals(rows: Sequence[dict]) -> dict[str, float]:
  return {name: sum(row[name] for row in rows) for name in _TOTALS}


def _merged(server: Sequence[Record], client: Sequence[Record]) -> list[dict]:
  """One row a step, of both parties' records: bytes each way, rounds, seconds."""
  return [
    {
      "layer": s.layer,
      "operation": s.kind,
      "offline": s.offline,
      "server_to_client": s.sent,
      "client_to_server": c.sent,
      "bytes": s.sent + c.sent,
      "messages": s.messages + c.messages,
      "rounds": max(s.rounds, c.rounds),
      "seconds": max(s.seconds, c.seconds),
    }
    for s, c in zip(server, client, strict=True)
  ]


def _extrapolated(rows: list[dict], part: Program, whole: Program, num_layers: int) -> tuple[list[dict], bool]:
  """The rows of the whole model, and whether each layer that was not run has an equal one that was.

  Args:
    rows: of `part`, the program that was run.
    whole: the program of all layers.
  """
  of_layer = collections.defaultdict(list)
  for row in rows:
    of_layer[row["layer"]].append(row)
  measured = [name for name in of_layer if name.isdigit()]
  if len(measured) == num_layers:
    return rows, True
  alike = collections.defaultdict(list)
  for name in measured:
    alike[_signature(part, int(name))].append(of_layer[name])
  exact, out = True, of_layer["setup"] + of_layer["embedding"]
  for layer in range(num_layers):
    same = alike.get(_signature(whole, layer))
    exact &= same is not None
    out += [_mean(rows) | {"layer": str(layer)} for rows in zip(*(same or [of_layer[measured[0]]]), strict=True)]
  return out + of_layer["head"], exact


def _mean(rows: Sequence[dict]) -> dict:
  """The mean of the same step's rows in several layers."""
  numbers = {name for name, value in rows[0].items() if not isinstance(value, str | bool)}
  return rows[0] | {name: sum(row[name] for row in rows) / len(rows) for name in numbers}


def _signature(program: Program, layer: int) -> tuple[Hashable, ...]:
  """What a layer's cost depends on: its steps, as far as their operations' costs do."""
  return tuple((step.kind, step.operation.cost_key(), step.ring) for step in program.steps if step.layer == layer)
