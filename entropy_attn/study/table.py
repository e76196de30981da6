"""What came out of a study: one row a run, over its seeds, head shares against one Max for all."""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
import statistics

from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import counts, entropy
from entropy_attn.errors import UserError
from entropy_attn.private.price import predict
from entropy_attn.private.program.spec import transforms_for
from entropy_attn.run import folder, metrics, summary
from entropy_attn.study import pairs
from entropy_attn.study.runs import Job, Run, Study

# What makes a model another than a row's.
_ARCHITECTURE = (
  "norm", "activation", "ffn", "residual_scaling", "reparam", "temperature", "value_residual", "ffns_removed",
)  # fmt: skip


def collect(
  study: Study, configs: Mapping[Job, ConfigDict], workdir: pathlib.Path, failures: Mapping[str, str]
) -> dict:
  """What a study found, ready for JSON.

  Head shares are those of each run's last evaluation with one Max for all runs: the largest that any of them used.

  Args:
    configs: of every job of the study.
    failures: of jobs, by their names, the reason.

  Returns:
    max_entropy (nats), study (name, scale, figures, baseline, commit), runs (a mapping each: see `_row`), and pairs
    (see `pairs.compare`).
  """
  rows = [_row(run, [j for j in configs if j.run.name == run.name], configs, workdir, failures) for run in study.runs]
  largest = max((m for row in rows for m in row["max_entropies"]), default=None)
  by_name = {row["name"]: row for row in rows}
  base = by_name[study.baseline]["perplexity"] if study.baseline else None
  for row in rows:
    del row["max_entropies"]
    found = [np.asarray(e, np.float32) for e in row.pop("entropies")]
    if found:
      shares = np.mean([entropy.head_shares(e, largest) for e in found], axis=0)
      row["head_shares"] = [round(float(share), 6) for share in shares]
    if base and row["perplexity"]:
      row["change"] = row["perplexity"] / base - 1
  about = {"name": study.name, "scale": study.scale, "figures": list(study.figures), "baseline": study.baseline}
  return {
    "max_entropy": largest,
    "study": {**about, "commit": folder.git_commit()},
    "runs": rows,
    "pairs": pairs.compare(rows, study.pairs),
  }


def went_wrong(result: Mapping) -> list[str]:
  """Names of the runs that failed, or diverged though their config (train.on_nonfinite=stop) forbids it."""
  return [row["name"] for row in result["runs"] if row["status"] == "failed" or row["unexpected"]]


def _row(
  run: Run,
  jobs: Sequence[Job],
  configs: Mapping[Job, ConfigDict],
  workdir: pathlib.Path,
  failures: Mapping[str, str],
) -> dict:
  """One run's entry: from its summaries where it has some, from its config otherwise."""
  config = configs[jobs[0]]
  m = config.model
  outcomes = [{} if job.name in failures else summary.read(workdir / job.name) or {} for job in jobs]
  perplexities = [o.get("perplexity") for o in outcomes]
  bits = [o.get("bits_per_byte") for o in outcomes]
  reached = [p for p in perplexities if p is not None]
  measured = [o for o in outcomes if o.get("entropy_LxH")]
  private, why = _private(json.dumps(m.to_dict()))
  nonfinite = [int(np.sum(o["nonfinite_rows_L"])) for o in outcomes if o.get("nonfinite_rows_L") is not None]
  return {
    "name": run.name,
    "config": run.config,
    "overrides": dict(run.overrides),
    "seeds": [job.seed for job in jobs],
    "folders": [job.name for job in jobs],
    "commits": [folder.commit_of(workdir / job.name) if o else None for job, o in zip(jobs, outcomes, strict=True)],
    "architecture": config_lib.architecture_name(config),
    "architecture_row": _architecture_row(config),
    "model": {name: m[name] for name in ("num_layers", "num_heads", "d_model", "context_length")},
    "status": _status(jobs, outcomes, failures),
    "reason": _reason(jobs, outcomes, failures),
    "unexpected": config.train.on_nonfinite == "stop" and any(o.get("status") == "diverged" for o in outcomes),
    "perplexities": perplexities,
    "bits_per_byte_seeds": bits,
    "perplexity": statistics.fmean(reached) if reached else None,
    "perplexity_sd": statistics.stdev(reached) if len(reached) > 1 else None,
    "bits_per_byte": statistics.fmean(found) if (found := [b for b in bits if b is not None]) else None,
    "change": None,
    "head_shares": None,
    "entropies": [o["entropy_LxH"] for o in measured],
    "max_entropies": [o["max_entropy"] for o in measured if o.get("max_entropy") is not None],
    "entropy_LxH": measured[0]["entropy_LxH"] if measured else None,
    "thresholds_LxH": _thresholds(workdir, jobs, outcomes) if config.regularizer.weight > 0 else None,
    "nonfinite_rows": sum(nonfinite) if nonfinite else None,
    "parameters": counts.parameter_count(m),
    "ffn_flops": counts.ffn_flops(m),
    "attention_flops": counts.attention_flops(m),
    "nonlinear_ops": [op.notation for op in counts.nonlinear_ops(m) if op.published],
    "gamma": config.regularizer.gamma if config.regularizer.weight > 0 else None,
    "published": dict(run.published) if run.published else None,
    "private": private,
    "private_reason": why,
    "step": max((o["step"] for o in outcomes if o.get("step") is not None), default=None),
    "seconds": sum(seconds) if (seconds := [o["seconds"] for o in outcomes if o.get("seconds")]) else None,
  }


def _status(jobs: Sequence[Job], outcomes: Sequence[Mapping], failures: Mapping[str, str]) -> str:
  """The worst that its seeds came to: failed, diverged, not trained, partial (some seeds are missing) or finished."""
  if any(job.name in failures for job in jobs):
    return "failed"
  if any(o.get("status") == "diverged" for o in outcomes):
    return "diverged"
  if all(outcomes):
    return "finished"
  return "partial" if any(outcomes) else "not trained"


def _reason(jobs: Sequence[Job], outcomes: Sequence[Mapping], failures: Mapping[str, str]) -> str | None:
  """What went wrong, of each seed that it went wrong with."""
  found = []
  for job, outcome in zip(jobs, outcomes, strict=True):
    reason = failures.get(job.name) or (outcome.get("divergence") or {}).get("text")
    if reason:
      found.append(f"seed {job.seed}: {reason}" if len(jobs) > 1 else reason)
  missing = sum(not outcome for outcome in outcomes)
  if not found and 0 < missing < len(jobs):
    found.append(f"{missing} of {len(jobs)} seeds are not trained")
  return "; ".join(found) or None


def _thresholds(workdir: pathlib.Path, jobs: Sequence[Job], outcomes: Sequence[Mapping]) -> list | None:
  """The learned thresholds of the first seed that has them, at its last record."""
  for job, outcome in zip(jobs, outcomes, strict=True):
    if not outcome:
      continue
    try:
      records = metrics.read(workdir / job.name, "train")
    except UserError:  # damaged or deleted: the figures that need it will say so
      continue
    found = [record["thresholds_LxH"] for record in records if "thresholds_LxH" in record]
    if found:
      return found[-1]
  return None


def _architecture_row(config: ConfigDict) -> str | None:
  """The name in `config.ARCHITECTURES` of what this is, temperatures a head counting as those a position; or None."""
  kind = lambda m: [m.get(name) != "none" if name == "temperature" else m.get(name) for name in _ARCHITECTURE]
  base = config_lib.base().model.to_dict()
  rows = [name for name, changed in config_lib.ARCHITECTURES.items() if kind({**base, **changed}) == kind(config.model)]
  regularised = config.regularizer.weight > 0
  rows = [name for name in rows if (name == "ereg") == regularised]
  return rows[0] if rows else None


@functools.lru_cache(maxsize=256)  # rows that differ in training alone have one price
def _private(model: str) -> tuple[dict | None, str | None]:
  """What a private inference of a model (config.model as JSON) is predicted to take, and None; or None, and why not."""
  config = config_lib.base()
  config.model.update(json.loads(model))
  try:
    found = predict.of_config(config, transforms_for(config.model), offline=True)
  except UserError as error:
    return None, str(error)
  seconds = predict.latencies(found)
  return {
    "bytes": found["total_bytes"],
    "online_bytes": found["online"]["bytes"],
    "rounds": found["rounds"],
    "online_rounds": found["online"]["rounds"],
    **{f"{line.lower()}_seconds": seconds["latency_seconds"][line] for line in ("LAN", "WAN")},
    **{f"{line.lower()}_online_seconds": seconds["online_latency_seconds"][line] for line in ("LAN", "WAN")},
  }, None
