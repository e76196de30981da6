"""The Comm columns of the paper's Tables 3, 4, 7 and 8: as published, as the engine's stock program, and as ours.

    python -m entropy_attn.private.audit --workdir=runs/audit
    python -m entropy_attn.private.audit --workdir=runs/audit --run     (also runs the engine where T = 128: 1.5 hours)

Predictions are those of `cost`; engine runs are profiles recorded in --measured, and those that --run adds to WORKDIR.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import pathlib

from absl import flags
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import cli
from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.private import cost, profile, published, source
from entropy_attn.private import spec as spec_lib
from entropy_attn.private.published import Row
from entropy_attn.private.show import columns
from entropy_attn.report import private as figures

BANDWIDTHS = np.geomspace(10, 10_000, 61)  # Mbit/s
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
)
KINDS = {"stock": "stock", "ours": ""}


def predicted(row: Row) -> dict:
  """A row with what the stock program and ours are predicted to take."""
  config = config_of(row)
  found = {
    kind: cost.of_config(config, spec_lib.transforms_for(config.model, text), row.length)
    for kind, text in KINDS.items()
  }
  keep = ("total_bytes", "rounds", "seconds", "by_operation")
  return {
    **dataclasses.asdict(row),
    "megabytes_per_second_of_published": row.gigabytes * 1e3 / (row.minutes * 60),
    "minutes_at_100_megabits": row.gigabytes * 8e3 / 100 / 60,
    **{kind: {name: cost_[name] for name in keep} for kind, cost_ in found.items()},
  }


def config_of(row: Row) -> ConfigDict:
  """A row's config; a temperature of each head, as its published cost has it, and not of each position."""
  config = getattr(config_lib, row.family)(row.setting)
  config.model.update(row.fields)
  config_lib.validate(config)
  return config


def ladder(row: Row) -> list[dict]:
  """Bytes and rounds of a row's model, step by step from the stock program to ours."""
  config, linear = config_of(row), row.fields.get("norm") == "none"
  text, found = "", []
  for name, change in LADDER:
    if (name == "FFNs eliminated" and not linear) or (name == "GELU by squares" and config.model.activation != "gelu"):
      continue
    text = f"{text},{change}"
    here = cost.of_config(config, spec_lib.parse_transforms(text), row.length)
    found.append({"step": name, "transforms": change, **{k: here[k] for k in ("total_bytes", "rounds", "seconds")}})
  for before, after in zip([None, *found], found):  # noqa: B905
    after["saved_bytes"] = before["total_bytes"] - after["total_bytes"] if before else 0.0
  return found


def measured_runs(folders: Iterable[pathlib.Path]) -> list[dict]:
  """The profiles in some folders; of one kind the last.

  Raises:
    UserError: for a file that is none.
  """
  found = []
  for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
    try:
      result = json.loads(path.read_text())
      found.append({name: result[name] for name in _MEASURED} | {"file": path.name})
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} is no profile of private.profile --json ({type(error).__name__}: {error})") from error
  return found


_MEASURED = (
  "architecture", "config", "length", "transforms", "total_bytes", "rounds", "seconds", "measured_layers", "num_layers",
  "max_abs_error", "by_operation", "peak_rss_bytes", "squares", "lowest_exponents", "threads",
)  # fmt: skip


def find_run(runs: Sequence[Mapping], row: Row, kind: str) -> dict | None:
  """The last recorded run of a row's model, of one kind, or None."""
  config = config_of(row)
  wanted = dataclasses.asdict(spec_lib.transforms_for(config.model, KINDS[kind]))
  same = [
    run
    for run in runs
    if run["config"]["model"] == config.model.to_dict() and run["length"] == row.length and run["transforms"] == wanted
  ]
  return same[-1] if same else None


def run_engine(row: Row, kind: str, folder: pathlib.Path) -> None:
  """Runs two layers of a row's model, and writes the profile."""
  config = config_of(row)
  print(f"running {row.model}, {kind}: two of {row.layers} layers", flush=True)
  transforms = spec_lib.transforms_for(config.model, KINDS[kind])
  result = profile.profile(source.untrained(config), transforms, length=row.length, layers=2)
  name = f"{row.slug}_{kind}.json"
  cli.write_json(str(folder / name), result)


def audit(runs: Sequence[Mapping]) -> dict:
  """All rows, the steps between stock and ours, and what of the published latencies contradicts itself."""
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
  """A recorded run next to what the cost model says of it, which was not fitted to it."""
  found = cost.of_profile(run)
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


def text(result: Mapping) -> str:
  """The audit as tables."""
  parts = [_bytes_table(result["rows"]), _ladder_tables(result["ladders"]), _causes(result), _gelu(result)]
  return "\n\n".join([*parts, _latency(result), *([_errors(result)] if result["errors"] else [])])


def _bytes_table(rows) -> str:
  gb = lambda run: f"{run['total_bytes'] / 1e9:.2f}" if run else "–"
  head = ("table", "model", "published", "stock", "engine run", "ours", "engine run", "published / ours", "rounds")
  lines = [
    (
      str(row["table"]), row["model"], f"{row['gigabytes']:.2f}", gb(row["stock"]), gb(row["stock_measured"]),
      gb(row["ours"]), gb(row["ours_measured"]), f"{row['gigabytes'] * 1e9 / row['ours']['total_bytes']:.1f}",
      f"{row['ours']['rounds']:,.0f}",
    )
    for row in rows
  ]  # fmt: skip
  layers = sorted({f"{m['measured_layers']} of {m['num_layers']}" for row in rows for m in
                   (row["stock_measured"], row["ours_measured"]) if m})  # fmt: skip
  note = "No engine runs yet."
  if layers:
    note = f"Engine runs: {', '.join(layers)} layers run, the rest extrapolated. "
    note += "Predictions take four squares an exponential, a run what its model needs."
  return (
    f"GB of one inference, both ways, by the cost model unless it says engine run\n\n{columns([head, *lines])}\n{note}"
  )


def _ladder_tables(ladders) -> str:
  parts = []
  for name, steps in ladders.items():
    lines = [
      (s["step"], f"{s['total_bytes'] / 1e9:.3f}", f"{s['saved_bytes'] / 1e9:+.3f}" if s["saved_bytes"] else "",
       f"{s['rounds']:,.0f}")
      for s in steps
    ]  # fmt: skip
    parts.append(columns([(f"{name}, T=128", "GB", "saved", "rounds"), *lines]))
  return "\n\n".join(parts)


def _causes(result) -> str:
  kinds = ("published", *KINDS)
  lines = [
    (row["model"], *(f"{row[part][kind]:.2f}" for part in ("layer", "rest") for kind in kinds))
    for row in result["per_layer"]
  ]
  head = ("GB at T=128", *(f"{part}, {kind}" for part in ("a layer", "all else") for kind in kinds))
  return (
    columns([head, *lines])
    + "\nFrom 12 and 18 layers (Tables 3 and 8). Outside of the layers the stock program here is cheaper than the "
    "published one:\nits client makes the embedding's one-hot rows itself, and weights stay with the server, unshared. "
    "Of ours the last\nlayer costs a fraction of a layer, which lowers all else."
  )


def _gelu(result) -> str:
  lines = [
    (f"Table {row['table']}", *(f"{row[name]:,.0f}" for name in ("published", *KINDS)))
    for row in result["gelu_bytes_an_element"]
  ]
  first = {row["model"]: row for row in result["rows"] if row["table"] == 3}
  ratio = lambda get: get(first["SM+LN+G"]) / get(first["SM+ScFuFFN"])
  return (
    columns([("bytes of a GELU above a ReLU, an element", "published", "stock", "ours"), *lines])
    + f"\nSM+LN+G costs {ratio(lambda r: r['gigabytes']):.1f} times SM+ScFuFFN as published, "
    f"{ratio(lambda r: r['stock']['total_bytes']):.1f} times in the stock program, and "
    f"{ratio(lambda r: r['ours']['total_bytes']):.1f} times where both are made cheap."
  )


def _latency(result) -> str:
  head = (
    "table",
    "model",
    "published GB",
    "published min",
    "min at 100 Mbit/s",
    "MB/s it would take",
    "ours: LAN",
    "WAN",
  )
  lines = []
  for row in result["rows"]:
    ours = [cost.latency(row["ours"], *line) / 60 for line in cost.LINES.values()]
    lines.append(
      (str(row["table"]), row["model"], f"{row['gigabytes']:.2f}", f"{row['minutes']:.2f}",
       f"{row['minutes_at_100_megabits']:.1f}", f"{row['megabytes_per_second_of_published']:.0f}",
       *(f"{minutes:.1f} min" for minutes in ours))
    )  # fmt: skip
  shorter = sum(row["minutes_at_100_megabits"] > row["minutes"] for row in result["rows"])
  both = sum(row["minutes_at_100_megabits"] / 2 > row["minutes"] for row in result["rows"])
  every = "all" if shorter == len(lines) else f"{shorter} of"
  return (
    columns([head, *lines])
    + f"\nOn the stated line of 100 Mbit/s {every} {len(lines)} published latencies are shorter than their own bytes "
    f"take, {both} even where both directions run at once,\nand without a round trip: taken on a faster line. "
    "Ours includes the computation of two cores; the paper had 32 threads."
  )


def _errors(result) -> str:
  lines = [
    (e["file"].removesuffix(".json"), f"{e['total_bytes'] / 1e6:,.1f}", f"{e['rounds']:,.0f}",
     *(f"{100 * e['relative_error'][name]:+.1f} %" for name in ("total_bytes", "rounds")))
    for e in result["errors"]
  ]  # fmt: skip
  return columns([("engine run", "MB", "rounds", "predicted: bytes", "rounds"), *lines])


def write_figures(result: Mapping, folder: pathlib.Path) -> list[pathlib.Path]:
  """bytes.png: stacked by operation, with the published marks; latency.png: against bandwidth."""
  first = [row for row in result["rows"] if row["table"] == 3 and not row["model"].startswith("EReg")]
  bars, marks = {}, {}
  for row in first:
    for kind in KINDS:
      bars[f"{row['model']}, {kind}"] = row[kind]["by_operation"]
    marks[f"{row['model']}, stock"] = row["gigabytes"] * 1e9
  paths = [folder / "bytes.png", folder / "latency.png"]
  figures.bytes_by_operation(bars, marks).savefig(paths[0])
  curves = {
    f"{row['model']}, {kind}": (BANDWIDTHS, [cost.latency(row[kind], b, 80.0) for b in BANDWIDTHS])
    for row in first
    for kind in KINDS
  }
  points = {row["model"]: (100.0, row["minutes"] * 60) for row in first}
  title = "12 layers, 128 tokens, round trips of 80 ms, computation of two cores"
  figures.latency(curves, points, title).savefig(paths[1])
  return paths


if __name__ == "__main__":
  workdir_flag = flags.DEFINE_string("workdir", None, "Folder for audit.json and the figures.")
  measured_flag = flags.DEFINE_string("measured", "benchmarks/private", "Folder of recorded profiles.")
  run_flag = flags.DEFINE_bool("run", False, "Run the engine for rows of 128 tokens that have no recorded profile.")
  json_flag = flags.DEFINE_string("json", None, "Also write the figures to this file.")

  def main() -> None:
    if not workdir_flag.value:
      raise UserError("--workdir=DIR is missing: where the figures go")
    folder = pathlib.Path(workdir_flag.value)
    engine_runs = folder / "runs"
    engine_runs.mkdir(parents=True, exist_ok=True)
    folders = [pathlib.Path(measured_flag.value), engine_runs]
    if run_flag.value:
      for row in (row for row in published.ROWS if row.length == 128 and row.layers == 12):
        for kind in KINDS:
          if find_run(measured_runs(folders), row, kind) is None:
            run_engine(row, kind, engine_runs)
    result = audit(measured_runs(folders))
    print(text(result))
    cli.write_json(str(folder / "audit.json"), result)
    cli.write_json(json_flag.value, result)
    paths = write_figures(result, folder)
    print(f"\nsaved in {folder}: audit.json, {', '.join(path.name for path in paths)}")

  cli.run(main)
