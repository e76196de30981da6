"""What the report shows of a folder, ready for JSON: a run, or the runs of a study."""

from collections.abc import Mapping, Sequence
import math
import pathlib

from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import entropy as entropy_lib
from entropy_attn import files
from entropy_attn.errors import UserError, one_line
from entropy_attn.report import tables
from entropy_attn.report.page import price, series
from entropy_attn.run import folder, metrics, summary

TABLE = "table.json"  # of a study, which writes it
_POINTS = 1000  # of a curve of losses
_SERIES = {"entropy": "entropy_LxH", "temperature": "temperature_LxH", "thresholds": "thresholds_LxH"}


def load(workdir: pathlib.Path) -> dict:
  """What is to be shown of a run's or a study's folder.

  Returns:
    title, kind (run or study), runs (one mapping each, see `_run`), last (of each, what `figures.comparison` draws),
    table (the rows of a study's table.json, or none), and left_out: sentences on runs that cannot be shown.

  Raises:
    UserError: for a folder that holds neither, or in which nothing was recorded yet.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is no folder: name that of a run or of a study")
  if folder.holds_run(workdir):
    name = workdir.resolve().name
    return {"title": name, "kind": "run", **_runs({name: _read(workdir)}, None), "table": [], "left_out": []}
  table = _table(workdir)
  folders = _folders(workdir, table)
  if not folders:
    raise UserError(f"{workdir} holds neither a run nor a study: train first, or correct the folder's name")
  read, left_out = {}, []
  for name, place in folders.items():
    try:
      read[name] = _read(place)
    except UserError as error:
      left_out.append(f"{name}: {one_line(error)}")
  if not read:
    raise UserError(f"{workdir}: no run of this study has recorded anything yet: {left_out[0]}")
  found = {"title": workdir.resolve().name, "kind": "study", **_runs(read, table.get("max_entropy"))}
  return found | {"table": table.get("runs", []), "left_out": left_out}


def signature(workdir: pathlib.Path) -> tuple:
  """What changes when something was recorded under a folder: cheap to ask again and again."""
  workdir = pathlib.Path(workdir)
  places = [workdir, *_folders(workdir, _table(workdir)).values()]
  return tuple(stamp for place in places for stamp in folder.stamps(place))


def _table(workdir: pathlib.Path) -> dict:
  try:
    found = files.read_json(workdir / TABLE) or {}
  except (OSError, ValueError) as error:
    raise UserError(
      f"{workdir / TABLE} cannot be read ({one_line(error)}): the study's command writes it anew"
    ) from error
  rows = found.get("runs", [])
  if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
    raise UserError(f"{workdir / TABLE} is no table of a study: its command writes it anew")
  return found


def _folders(workdir: pathlib.Path, table: Mapping) -> dict[str, pathlib.Path]:
  """The runs' folders by name: as the table says, or as they lie there where it is not written yet."""
  if table.get("runs"):
    found = {}
    for row in table["runs"]:
      places = row.get("folders") or [row["name"]]
      for place in places:
        name = row["name"] if len(places) == 1 else f"{row['name']}, {pathlib.PurePath(place).name}"
        found[name] = workdir / place
    return found
  if folder.holds_run(workdir):
    return {}
  near = [place for place in sorted([*workdir.glob("*"), *workdir.glob("*/seed*")]) if folder.holds_run(place)]
  return {", ".join(place.relative_to(workdir).parts): place for place in near}


def _read(workdir: pathlib.Path) -> dict:
  """The config, outcome and records of a run.

  Raises:
    UserError: where it has none.
  """
  config = _completed(folder.read_config(workdir))
  trained, evaluated = metrics.read(workdir, "train"), metrics.read(workdir, "eval")
  if not trained and not evaluated:
    raise UserError(f"{workdir} has recorded nothing yet: wait for its first step")
  return {
    "workdir": workdir,
    "config": config,
    "trained": trained,
    "evaluated": evaluated,
    "outcome": summary.read(workdir) or {},
  }


def _completed(saved: ConfigDict) -> ConfigDict:
  """The config of a run with the defaults of fields that came after it."""
  config = config_lib.base()
  for group, values in saved.items():
    with config[group].ignore_type():
      config[group].update(values.to_dict())
  return config


def _runs(read: Mapping[str, Mapping], max_entropy: float | None) -> dict[str, list]:
  """Every run that was read, with its heads' series thinned so that all fit into the page; and the last of each."""
  numbers = 0
  for run in read.values():
    heads = run["config"].model.num_layers * run["config"].model.num_heads
    numbers += heads * len(_curve(run)) * 4
  part = min(1, series.BUDGET / max(numbers, 1))
  runs = [_run(name, run, part, max_entropy) for name, run in read.items()]
  return {"runs": runs, "last": [run.pop("last") for run in runs]}


def _curve(run: Mapping) -> list[dict]:
  """The denser records."""
  return run["trained"] or run["evaluated"]


def _run(name: str, run: Mapping, part: float, max_entropy: float | None) -> dict:
  """One run.

  Args:
    part: of its records whose heads' series are kept.
    max_entropy: of the head bins, nats; None: the run's own.
  """
  config, outcome = run["config"], run["outcome"]
  curve = _curve(run)
  kept = [curve[i] for i in series.thin(len(curve), max(2, int(part * len(curve))))]
  last_eval = run["evaluated"][-1] if run["evaluated"] else {}
  largest = config_lib.bins_max(config) if max_entropy is None else max_entropy
  cost = price.of_run(run["workdir"], config)
  found = {
    "name": name,
    "architecture": config_lib.architecture_name(config),
    "layers": config.model.num_layers,
    "heads": config.model.num_heads,
    "max": series.short(largest, 6),
    "ceiling": series.short(config_lib.causal_ceiling(config.model.context_length), 6),
    "config": _flat(config),
    "status": outcome.get("status", "so far"),
    "asked": config.train.steps,
    "divergence": _divergence(outcome, curve),
    "source": "training batches" if run["trained"] else "evaluations",
    "steps": [record["step"] for record in kept],
    "recorded": len(curve),
    "train": _losses(run["trained"]),
    "eval": _losses(run["evaluated"]),
    **_series(config, kept),
    "private": cost,
  }
  last = outcome or last_eval or curve[-1]
  shares = entropy_lib.head_shares(np.array(last["entropy_LxH"], np.float32), largest).tolist()
  about = {"name": name, "architecture": found["architecture"], "perplexity": last.get("perplexity")}
  found["last"] = about | {"entropy_LxH": last["entropy_LxH"], "head_shares": shares}
  found["shares"] = tables.percent(shares)
  found["verdict"] = _verdict(found, last, run)
  return found


def _flat(config: ConfigDict) -> dict[str, str]:
  """The fields as texts by "group.field"."""
  return {f"{group}.{name}": str(value) for group, of in config.to_dict().items() for name, value in of.items()}


def _losses(records: Sequence[Mapping]) -> list[list]:
  kept = [records[i] for i in series.thin(len(records), _POINTS)]
  return [[record["step"], series.short(record.get("loss"), 5)] for record in kept]


def _series(config: ConfigDict, records: Sequence[Mapping]) -> dict:
  """The packed series of the heads, and what the penalty is of."""
  values = {name: series.array(records, field) for name, field in _SERIES.items()}
  r, heads = config.regularizer, (config.model.num_layers, config.model.num_heads)
  found = {"penalty": None, "share": None}
  if r.weight > 0:
    if values["thresholds"] is None:  # they do not learn
      values["thresholds"] = np.full((len(records), *heads), r.threshold_init)
    length = config.model.context_length
    largest = math.log(length) if r.ceiling == "log_T" else config_lib.causal_ceiling(length)
    weights = series.array(records, "head_weights_LxH")  # None: all weigh the same
    shares = series.penalty_shares(
      values["entropy"], values["thresholds"], 1.0 if weights is None else weights,
      gamma=r.gamma, sides=r.sides, largest=largest,
    )  # fmt: skip
    found["share"] = series.pack(shares)
    found["penalty"] = {
      "gamma": r.gamma,
      "largest": series.short(largest, 6),
      "sides": r.sides,
      "reduction": r.reduction,
    }
  return found | {name: None if of is None else series.pack(of) for name, of in values.items()}


def _divergence(outcome: Mapping, curve: Sequence[Mapping]) -> dict | None:
  """Where a run diverged, and in what words its summary says so."""
  told = outcome.get("divergence")
  if told:
    return {"step": told["step"], "text": told["text"]}
  last = curve[-1]
  if last.get("loss") is None:
    return {"step": last["step"], "text": f"step {last['step']}: the loss is not finite"}
  return None


def _verdict(run: Mapping, last: Mapping, read: Mapping) -> list[list[str]]:
  """What one wants to know first: [what, its figure, a remark] each."""
  entropy = np.array(last["entropy_LxH"], float)
  count = entropy.size
  broken = int(np.sum(~np.isfinite(entropy)))
  collapsed, overloaded = int(np.sum(entropy < run["max"] / 4)), int(np.sum(entropy >= 0.75 * run["max"]))
  perplexity = last.get("perplexity")
  step = last.get("step", run["steps"][-1])
  about = f"at step {step:,} of {run['asked']:,}"
  if run["divergence"]:
    quality = ["Perplexity", "not finite", run["divergence"]["text"]]
  elif perplexity is None:
    loss = series.short(read["trained"][-1]["loss"]) if read["trained"] else None
    quality = ["Perplexity", tables.NONE, f"no evaluation yet; training loss {loss} {about}"]
  else:
    bits = last.get("bits_per_byte")
    quality = ["Perplexity", f"{perplexity:.2f}", about + (f", {bits:.3f} bits a byte" if bits is not None else "")]
  return [
    quality,
    [
      "Heads collapsed",
      f"{collapsed} of {count}",
      f"below a quarter of {run['max']:.2f} nats" + (f"; {broken} are not finite" if broken else ""),
    ],
    ["Heads overloaded", f"{overloaded} of {count}", f"from three quarters of {run['max']:.2f} nats"],
    _private_verdict(run["private"]),
  ]


def _private_verdict(cost: Mapping) -> list[str]:
  if "reason" in cost:
    return ["A private answer", tables.NONE, one_line(cost["reason"])]
  seconds, size = price.latency(cost, *price.lan()), price.size(cost)
  online = f"{size['online'] / 1e9:.2f} GB with the prompt, {size['offline'] / 1e9:.2f} GB before it"
  took = seconds["online"]
  return ["A private answer", f"{took:.1f} s" if took < 10 else tables.duration(took), f"over a LAN; {online}"]
