"""A model that trains in a second: the overrides of whole-run tests, and how they read its metrics."""

import json

STEPS = 24
TINY = {
  "model.num_layers": 2, "model.num_heads": 2, "model.d_model": 16, "model.context_length": 16,
  "model.max_positions": 16, "model.vocab_size": 300, "train.steps": STEPS, "train.batch_size": 8,
  "train.log_every": 1, "train.checkpoint_every": 8, "eval.every": 10, "eval.batch_size": 8, "eval.batches": 3,
  "data.name": "text_files",
}  # fmt: skip


def lines(workdir, kind="train"):
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [record for record in records if record["kind"] == kind]
