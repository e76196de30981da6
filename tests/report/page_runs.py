"""Run folders for the tests of the report: made-up courses of heads, recorded as a run records them."""

import json

import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import entropy as entropy_lib
from entropy_attn.run import metrics


def write_run(
  workdir, architecture="ereg", *, layers=3, heads=4, records=20, diverged=False, finished=True, **overrides
):
  """A run whose heads begin at the ceiling and part from there: the first layer stays, the last ones fall.

  Args:
    diverged: the last record is not finite, and the summary says so.
    finished: whether it has a summary.
    overrides: fields of the config, "group.field" with "__" for the dot.
  """
  config = config_lib.codeparrot("quick", architecture)
  config.model.update(num_layers=layers, num_heads=heads, d_model=heads * 4)
  config.train.update(steps=10 * records)
  for name, value in overrides.items():
    group, field = name.split("__")
    config[group][field] = value
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(config.to_json())
  lines, last = [], None
  for i in range(1, records + 1):
    last = record(config, i, records, broken=diverged and i == records)
    lines.append({"kind": "train", "step": 10 * i, **last})
    if i % (records // 2) == 0 and not (diverged and i == records):
      largest = config_lib.bins_max(config)
      loss = float(last["loss"])
      evaluation = {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "bits_per_byte": loss / 2,
        "nonfinite_rows_L": [0] * layers,
      }
      lines.append(
        {"kind": "eval", "step": 10 * i, **evaluation, **entropy_lib.head_statistics(last["entropy_LxH"], largest)}
      )
  # As metrics.Writer does it, which would also draw a thousand curves a record for TensorBoard.
  text = "".join(json.dumps(metrics.to_json(line)) + "\n" for line in lines)
  (workdir / "metrics.jsonl").write_text(text)
  if finished:
    text = f"step {10 * records}: not finite first in the attention of layer 1; no head had collapsed"
    outcome = {
      "status": "diverged" if diverged else "finished",
      "step": 10 * records,
      "divergence": {"step": 10 * records, "text": text} if diverged else None,
      "loss": last["loss"],
      "perplexity": np.exp(last["loss"]),
      **entropy_lib.head_statistics(last["entropy_LxH"], config_lib.bins_max(config)),
    }
    (workdir / "summary.json").write_text(json.dumps(metrics.to_json(outcome)))
  return config


def record(config, i, records, *, broken=False):
  """What a step's record holds."""
  L, H = config.model.num_layers, config.model.num_heads
  ceiling = config_lib.causal_ceiling(config.model.context_length)
  part = i / records
  depth = np.arange(L)[:, None] / max(L - 1, 1)
  entropy = ceiling * (1 - part * (0.15 + 0.84 * depth * (0.6 + 0.4 * np.arange(H) / max(H - 1, 1))))
  entropy = entropy + 0.05 * np.sin(np.arange(L * H).reshape(L, H) + i)
  loss = 8 * np.exp(-2 * part) + 2 + 0.05 * np.sin(i)
  values = {"loss": loss, "cross_entropy": loss, "entropy_LxH": entropy, "entropy_L": entropy.mean(axis=1)}
  if config.model.temperature != "none":
    values["temperature_LxH"] = 0.01 + part * np.linspace(0, 2, L * H).reshape(L, H)
  if config.regularizer.weight > 0:
    values["thresholds_LxH"] = 0.5 + 0.1 * part * np.linspace(-1, 1, L * H).reshape(L, H)
  if broken:
    values["loss"] = values["cross_entropy"] = np.nan
    values["entropy_LxH"] = np.where(np.arange(L)[:, None] >= 1, np.nan, entropy)
  return values


def write_study(workdir, runs):
  """A study's table over runs that `write_run` wrote: {name: its keyword arguments}."""
  rows = []
  for name, options in runs.items():
    config = write_run(workdir / name / "seed0", **options)
    outcome = json.loads((workdir / name / "seed0" / "summary.json").read_text())
    rows.append({
      "name": name,
      "folders": [f"{name}/seed0"],
      "architecture": config_lib.architecture_name(config),
      "status": outcome["status"],
      "reason": (outcome["divergence"] or {}).get("text"),
      "perplexity": outcome["perplexity"],
      "head_shares": outcome["head_shares"],
      "entropy_LxH": outcome["entropy_LxH"],
    })  # fmt: skip
  largest = config_lib.bins_max(config)
  (workdir / "table.json").write_text(json.dumps({"max_entropy": largest, "runs": rows}))
