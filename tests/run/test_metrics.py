"""A run's records: what the writer leaves, and what the reader makes of a file that was cut short."""

import json
import math

import numpy as np
import pytest

from entropy_attn.errors import UserError
from entropy_attn.run import metrics


def test_what_is_written_is_read_again_with_nan_as_none(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write("train", 1, {"loss": 2.5, "entropy_LxH": np.array([[1.0, np.nan]]), "text": "x"})
  writer.write("eval", 1, {"loss": np.float32(2.0)})
  writer.close()
  assert metrics.read(tmp_path, "train") == [
    {"kind": "train", "step": 1, "loss": 2.5, "entropy_LxH": [[1.0, None]], "text": "x"}
  ]
  assert metrics.read(str(tmp_path), "eval") == [{"kind": "eval", "step": 1, "loss": 2.0}]


def test_a_resumed_writer_drops_what_came_after_its_step(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  for step in range(1, 6):
    writer.write("train", step, {"loss": step})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "train", "st')
  again = metrics.Writer(tmp_path, 3)
  again.write("train", 4, {"loss": 40})
  again.close()
  assert [record["loss"] for record in metrics.read(tmp_path, "train")] == [1, 2, 3, 40]
  assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_the_later_of_repeated_steps_counts_and_a_torn_line_does_not(tmp_path):
  records = [("train", 10, 5.0), ("train", 20, 4.0), ("eval", 20, 1.0), ("train", 20, 3.0)]
  text = "".join(json.dumps({"kind": kind, "step": step, "loss": loss}) + "\n" for kind, step, loss in records)
  (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "train", "step": 5, "loss": NaN}\n{"kind": "train", "st')
  read = metrics.read(tmp_path, "train")
  assert [record["step"] for record in read] == [5, 10, 20]
  assert math.isnan(read[0]["loss"]) and read[2]["loss"] == 3.0


def test_what_is_no_record_is_named_with_its_line(tmp_path):
  with pytest.raises(UserError, match=r"absent holds no metrics\.jsonl"):
    metrics.read(tmp_path / "absent", "train")
  (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"step": 2}\n')
  with pytest.raises(UserError, match=r"metrics\.jsonl:2 "):
    metrics.read(tmp_path, "train")
