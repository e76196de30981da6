"""The paper's Tables 3, 4, 7 and 8 next to what the engine's stock program and ours are predicted to take, and took."""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import published
from entropy_attn.errors import UserError
from entropy_attn.private.price import predict
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.published import Row

# From the stock program to ours, each on top of the one before. exponential=squares brings the engine's cheap settings.
LADDER = (
  ("stock", "stock"),
  ("embedding: short rows and bits", "embedding=selected"),
  ("scales folded into weights", "fold=on"),
  ("the last position alone", "last_position=on,join_heads=on"),
  ("one product for Q, K, V", "one_product=on"),
  ("FFNs eliminated", "eliminate_ffns=on"),
  ("the causal triangle alone", "triangle=on"),
  ("division after the values", "division=late"),
  ("GELU by squares", "gelu=squares"),
  ("exponential by squares, engine settings", "exponential=squares,clamp=on,checked=on"),
  ("softmax in a 32-bit ring", "softmax_ring=32,division=auto"),
  ("one check of all layers", "one_check=on"),
  ("heads of several queries joined", "join_queries=on"),
  ("scores in causal blocks", "causal_blocks=on"),
  ("ReLU and GELU in a 32-bit ring", "activation_ring=auto"),
)
AHEAD = "products made ahead and verified"  # the last step, which is none of transforms
KINDS = {"stock": "stock", "ours": ""}
# What is told of a row, and of a profile.
PUBLISHED = ("table", "model", "architecture", "family", "setting", "layers", "length", "gigabytes", "minutes")
MEASURED = (
  "architecture", "config", "length", "transforms", "total_bytes", "rounds", "seconds", "measured_layers", "num_layers",
  "max_abs_error", "by_operation", "peak_rss_bytes", "squares", "lowest_exponents", "threads",
)  # fmt: skip


def predicted(row: Row) -> dict:
  """A row with what the stock program and ours are predicted to take.

  Returns:
    The row, megabytes_per_second_of_published, minutes_at_100_megabits, and for each of KINDS total_bytes, rounds,
    seconds and by_operation.
  """
  config = config_of(row)
  found = {
    kind: predict.of_config(config, spec_lib.transforms_for(config.model, text), row.length, offline=kind == "ours")
    for kind, text in KINDS.items()
  }
  keep = ("total_bytes", "rounds", "seconds", "by_operation")
  return {
    **{name: getattr(row, name) for name in PUBLISHED},
    "megabytes_per_second_of_published": row.gigabytes * 1e3 / (row.minutes * 60),
    "minutes_at_100_megabits": row.gigabytes * 8e3 / 100 / 60,
    **{kind: {name: cost_[name] for name in keep} for kind, cost_ in found.items()},
  }


def config_of(row: Row) -> ConfigDict:
  """A row's config; a temperature of each head, as its published cost has it, and not of each position."""
  config = getattr(config_lib, row.family)(row.setting, row.architecture)
  if config.model.temperature != "none":
    config.model.temperature = "per_head"
  config_lib.validate(config)
  return config


def ladder(row: Row) -> list[dict]:
  """Bytes and rounds of a row's model, step by step from the stock program to ours."""
  config = config_of(row)
  idle = set()  # steps that change nothing of this architecture
  if config.model.norm != "none":
    idle.add("FFNs eliminated")
  if config.model.activation != "gelu":
    idle.add("GELU by squares")
  if config.model.activation == "identity":
    idle.add("ReLU and GELU in a 32-bit ring")
  text, found = "", []
  for name, change in (*LADDER, (AHEAD, "")):
    if name in idle:
      continue
    text = f"{text},{change}"
    here = predict.of_config(config, spec_lib.parse_transforms(text), row.length, offline=name == AHEAD)
    found.append({"step": name, "transforms": change, **{k: here[k] for k in ("total_bytes", "rounds", "seconds")}})
  for before, after in zip([None, *found], found):  # noqa: B905
    after["saved_bytes"] = before["total_bytes"] - after["total_bytes"] if before else 0.0
  return found


def measured_runs(folders: Iterable[pathlib.Path]) -> list[dict]:
  """The profiles in some folders, in the order of their names: what MEASURED names of each, and its file.

  Raises:
    UserError: for a file that is none.
  """
  found = []
  for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
    try:
      result = json.loads(path.read_text())
      found.append({name: result[name] for name in MEASURED} | {"file": path.name})
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} is no profile of private.profile --json ({type(error).__name__}: {error})") from error
  return found


def find_run(runs: Sequence[Mapping], row: Row, kind: str) -> dict | None:
  """The last recorded run of a row's model, of one kind, or None."""
  config = config_of(row)
  wanted = spec_lib.transforms_for(config.model, KINDS[kind])
  same = [
    run
    for run in runs
    if run["config"]["model"] == config.model.to_dict()
    and run["length"] == row.length
    and spec_lib.recorded(run["transforms"]) == wanted
  ]
  return same[-1] if same else None


def compare(runs: Sequence[Mapping]) -> dict:
  """All rows, the steps between stock and ours, and what of the published latencies contradicts itself.

  Args:
    runs: of `measured_runs`.

  Returns:
    rows (see `predicted`, with stock_measured and ours_measured), ladders by model, per_layer, gelu_bytes_an_element,
    and errors (see `errors`) of the runs.
  """
  rows = []
  for row in published.ROWS:
    found = predicted(row)
    for kind in KINDS:
      found[f"{kind}_measured"] = find_run(runs, row, kind)
    rows.append(found)
  first = {row.model: row for row in published.ROWS if row.table == 3}
  return {
    "rows": rows,
    "ladders": {name: ladder(row) for name, row in first.items()},
    "per_layer": per_layer(rows),
    "gelu_bytes_an_element": gelu_bytes(rows),
    "errors": [errors(run) for run in runs],
  }


def errors(run: Mapping) -> dict:
  """Bytes and rounds of a recorded run, and the relative errors of the cost model, which was not fitted to it."""
  found = predict.of_profile(run)
  names = ("total_bytes", "rounds")
  relative = {name: found[name] / run[name] - 1 for name in names}
  return {"file": run["file"], **{name: run[name] for name in names}, "relative_error": relative}


def per_layer(rows: Sequence[Mapping]) -> list[dict]:
  """GB of one layer and of all else at T = 128, from 12 and 18 layers: as published, of the stock program, of ours."""
  found = []
  of = {(row["table"], row["model"]): row for row in rows}
  for model in (row.model for row in published.ROWS if row.table == 3):
    pair = of[3, model], of[8, model]
    totals = {"published": [row["gigabytes"] for row in pair]}
    totals |= {kind: [row[kind]["total_bytes"] / 1e9 for row in pair] for kind in KINDS}
    layer = {name: (eighteen - twelve) / 6 for name, (twelve, eighteen) in totals.items()}
    rest = {name: totals[name][0] - 12 * layer[name] for name in totals}
    found.append({"model": model, "layer": layer, "rest": rest})
  return found


def gelu_bytes(rows: Sequence[Mapping]) -> list[dict]:
  """What a GELU costs more than a ReLU, an element: as published, of the stock program, and of ours."""
  found = []
  for table in sorted({row["table"] for row in rows}):
    of = {row["model"]: row for row in rows if row["table"] == table}
    gelu, relu = of["SM+LN+G"], of["SM+LN+R"]
    elements = gelu["layers"] * gelu["length"] * 4 * 768
    more = {"published": (gelu["gigabytes"] - relu["gigabytes"]) * 1e9}
    more |= {kind: gelu[kind]["total_bytes"] - relu[kind]["total_bytes"] for kind in KINDS}
    found.append({"table": table, **{name: value / elements for name, value in more.items()}})
  return found
