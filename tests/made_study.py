"""A study's table.json and the courses of its runs, made up in their forms: what its figures are drawn from."""

import json
import math

import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import entropy, published

STEPS = np.arange(10, 601, 10)
_PLAIN = [name for name, fields in config_lib.ARCHITECTURES.items() if "reparam" not in fields]
_NORMALISED = [(name, targets) for name in ("wnorm", "snorm") for targets in published.TABLE_5[name]]
ROWS = [(name, "ffn") for name in ("ln_gelu", "sm", "ereg", "scfuffn", "gelu", "relu", "ln_relu", "ln")]
ROWS += [(name, "ffn") for name in _PLAIN if (name, "ffn") not in ROWS] + _NORMALISED


def study(workdir, rows=8, *, seeds=3, shape=(6, 4), gammas=None, diverged=("sm",), max_entropy=3.878):
  """Writes the records of a study's runs below a folder; returns what its table.json would hold.

  Args:
    rows: how many; each an architecture of its own, or, with gammas, EReg with one of them.
    shape: layers and heads.
    diverged: names of the runs whose last step is not finite.
  """
  named = [(f"gamma_{gamma:.2f}", "ereg", "ffn", gamma) for gamma in gammas or []]
  if not gammas:
    named = [
      (f"{name}_{targets}" if name in published.TABLE_5 else name, name, targets, 0.2 if name == "ereg" else None)
      for name, targets in ROWS[:rows]
    ]
  made = [_row(workdir, i, *row, range(seeds), shape, row[0] in diverged, max_entropy) for i, row in enumerate(named)]
  study = {"figures": [], "baseline": named[0][0]}
  return json.loads(json.dumps({"max_entropy": max_entropy, "study": study, "runs": made, "pairs": []}))


def _row(workdir, number, name, architecture, targets, gamma, seeds, shape, diverged, max_entropy):
  config = config_lib.codeparrot("quick", architecture, targets)
  random = np.random.default_rng(number)
  perplexities, shares, folders, first = [], [], [], None
  for seed in seeds:
    loss = 4.1 + 0.04 * number + random.normal(0, 0.01)
    last_LxH = _course(workdir / name / f"seed{seed}", random, loss, shape, architecture, diverged)
    perplexities.append(None if diverged else math.exp(loss))
    shares.append(np.asarray(entropy.head_shares(np.float32(last_LxH), max_entropy)))
    folders.append(f"{name}/seed{seed}")
    first = last_LxH if first is None else first
  thresholds = random.uniform(0.2, 0.5, shape).tolist() if architecture == "ereg" else None
  gigabytes = {"ln_gelu": 4.44, "ln_relu": 3.15, "gelu": 3.9, "relu": 2.7, "ln": 2.1}.get(architecture, 1.45)
  printed = {row.architecture: row for row in published.ROWS if row.table == 3}.get(architecture)
  perplexity = published.TABLE_2.get(architecture)
  return {
    "name": name, "config": f"configs/codeparrot_{architecture}.py:quick", "overrides": {}, "seeds": list(seeds),
    "folders": folders, "architecture": config_lib.architecture_name(config), "architecture_row": architecture,
    "model": {"num_layers": shape[0], "num_heads": shape[1], "d_model": 128, "context_length": 128},
    "status": "diverged" if diverged else "finished", "reason": "step 300: loss is nan" if diverged else None,
    "perplexities": perplexities, "perplexity": None if diverged else float(np.mean(perplexities)),
    "perplexity_sd": None if diverged or len(seeds) < 2 else float(np.std(perplexities, ddof=1)),
    "head_shares": np.mean(shares, axis=0).tolist(),
    "entropy_LxH": [[None if math.isnan(value) else value for value in heads] for heads in first.tolist()],
    "thresholds_LxH": thresholds, "gamma": gamma,
    "published": None if perplexity is None else {
      "perplexity": None if math.isnan(perplexity) else perplexity, "head_shares": None,
      "gigabytes": printed and printed.gigabytes, "minutes": printed and printed.minutes,
    },
    "private": {
      "bytes": 1e9 * gigabytes, "online_bytes": 0.26e9 * gigabytes, "rounds": 1500, "online_rounds": 1400,
      "lan_seconds": 60.0 * gigabytes, "lan_online_seconds": 5.0 * gigabytes,
      "wan_seconds": 300 + 140.0 * gigabytes, "wan_online_seconds": 60 + 20.0 * gigabytes,
    },
  }  # fmt: skip


def _course(folder, random, loss, shape, architecture, diverged):
  """Writes the records of one seed; returns its last entropies."""
  layers, heads = shape
  depth = np.linspace(0, 1, layers)[:, None] * np.ones(heads)
  fall = {"sm": 3.8 * depth**0.6, "ereg": 1.2 + 0.7 * depth, "gelu": 0.3 * depth}.get(architecture, 0.5 + 1.1 * depth)
  lines, steps = [], STEPS[STEPS <= 300] if diverged else STEPS
  for step in steps:
    broken = diverged and step == steps[-1]
    entropy_LxH = 3.878 - fall * (1 - math.exp(-step / 150)) - random.uniform(0, 0.06, shape)
    if broken:
      entropy_LxH[-1, -1] = np.nan
    entropy_LxH = np.maximum(entropy_LxH, 0.02)  # NaN stays
    at_step = loss + 3.4 * math.exp(-step / 90)
    heads_of = [[None if math.isnan(value) else value for value in row] for row in entropy_LxH.tolist()]
    noisy = None if broken else at_step + random.normal(0, 0.05)
    lines.append({"kind": "train", "step": int(step), "loss": noisy, "cross_entropy": noisy, "entropy_LxH": heads_of})
    if step % 100 == 0 and not broken:
      lines.append({"kind": "eval", "step": int(step), "loss": at_step, "entropy_LxH": heads_of})
  folder.mkdir(parents=True)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return entropy_LxH
