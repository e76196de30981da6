"""A run's records: what the writer leaves, what the reader makes of a damaged file, and what TensorBoard is given."""

import errno
import json
import math
import os
import re

from events import events, hparams, images, shown
import numpy as np
import pytest
from tensorboardX.proto import api_pb2, layout_pb2

from entropy_attn.errors import UserError
from entropy_attn.run import charts, metrics

RECORD = {
  "loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_second": 10.0, "max_entropy": 3.0,
  "entropy_LxH": np.array([[1.0, np.nan], [2.0, 3.0]]), "entropy_L": np.array([np.nan, 2.5]),
  "grad_norm_L": np.ones(2), "temperature_LxH": np.ones((2, 2)), "head_shares": np.array([0, 0.25, 0.5, 0]),
  "nonfinite_rows_L": np.array([1, 2]),
}  # fmt: skip


def write(folder, steps, resume=0, kind="train"):
  writer = metrics.Writer(folder, resume)
  for step in steps:
    writer.write(kind, step, {"loss": step})
  writer.close()


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
  write(tmp_path, range(1, 6))
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "train", "st')
  write(tmp_path, [4], resume=3)
  assert [record["loss"] for record in metrics.read(tmp_path, "train")] == [1, 2, 3, 4]
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
  for text in ('{"kind": "train", "step": 1}\n{"step": 2}\n', '{"kind": "train", "step": 1}\n\0\xff\n{"kind"'):
    (tmp_path / "metrics.jsonl").write_bytes((text + ': "train", "step": 3}\n').encode("latin-1"))
    for use in (lambda: metrics.read(tmp_path, "train"), lambda: metrics.Writer(tmp_path, 9)):
      with pytest.raises(UserError, match=r"metrics\.jsonl:2 "):
        use()


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 50, b"\0\n\0\0\n", b"\xff\xfe", b"\n", b"[" * 9999], ids=range(6))
def test_wherever_a_power_cut_ends_the_file_the_whole_lines_before_it_survive(tmp_path, rubbish):
  write(tmp_path, range(1, 5))
  path = tmp_path / "metrics.jsonl"
  content = path.read_bytes()
  for cut in range(len(content) + 1):
    path.write_bytes(content[:cut] + rubbish)
    whole = content[:cut].count(b"\n")
    read = [record["step"] for record in metrics.read(tmp_path, "train")]
    assert read[:whole] == list(range(1, whole + 1)) and len(read) <= whole + 1  # one more if its newline alone is cut
    assert metrics.last_step(tmp_path) == (len(read) or None)
    if cut % 11 == 0:
      write(tmp_path, [9], resume=8)
      assert [record["step"] for record in metrics.read(tmp_path, "train")] == [*read, 9]
      assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_end_is_told_once_and_left_as_it_is_by_a_reader(tmp_path, capsys):
  write(tmp_path, [1])
  path = tmp_path / "metrics.jsonl"
  damaged = path.read_bytes() + b'{"kind"\0\0\n\0'
  path.write_bytes(damaged)
  metrics.read(tmp_path, "train"), metrics.read(tmp_path, "eval")
  assert path.read_bytes() == damaged
  assert capsys.readouterr().err.splitlines() == [
    f"{path}: its end is damaged, as by a crash or a power cut: 2 line(s), 11 bytes left out"
  ]


def test_what_is_recorded_and_what_is_not(tmp_path):
  assert metrics.last_step(tmp_path) is None and not metrics.has(tmp_path, "eval", 3)
  write(tmp_path, [3, 7])
  write(tmp_path, [5], resume=7, kind="eval")
  assert metrics.last_step(tmp_path) == 7
  assert metrics.has(tmp_path, "eval", 5) and metrics.has(tmp_path, "train", 3)
  assert not metrics.has(tmp_path, "eval", 3)


def test_records_set_aside_are_numbered_and_nothing_is_lost(tmp_path):
  assert metrics.set_aside(tmp_path) is None
  for number in (1, 2):
    write(tmp_path, [number])
    assert metrics.set_aside(tmp_path) == tmp_path / f"metrics.{number}.jsonl"
  write(tmp_path, [3])
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "metrics.1.jsonl", "metrics.2.jsonl", "metrics.jsonl", "tensorboard", "tensorboard.1", "tensorboard.2",
  ]  # fmt: skip
  assert json.loads((tmp_path / "metrics.1.jsonl").read_text())["step"] == 1


def test_a_full_disk_is_named_and_what_was_recorded_stays(tmp_path, monkeypatch):
  write(tmp_path, [1, 2, 3])
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="no space left to record"):
      metrics.Writer(tmp_path, 2)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []

  writer = metrics.Writer(tmp_path, 3)
  file = writer._file

  class Full:
    fileno, close = file.fileno, file.close

    def write(self, data):
      return file.write(data[:5]) if len(data) > 20 else no_space()

  writer._file = Full()
  with pytest.raises(UserError, match="no space left to record"):
    writer.write("train", 4, {"loss": 4})
  monkeypatch.setattr(os, "fsync", no_space)
  writer.flush()  # what saves the state after that calls it
  writer.close()
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_hides_the_steps_that_a_resumed_run_repeats(tmp_path):
  write(tmp_path, range(1, 6))
  write(tmp_path, range(3, 9), resume=2)  # within the same second: a file of its own all the same
  assert shown(tmp_path) == {("train/loss", step): step for step in range(1, 9)}


def test_tensorboard_is_given_few_groups_and_a_chart_a_layer_that_names_its_curves(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write("train", 1, RECORD)
  writer.write("eval", 1, {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": None, "nonfinite_rows_L": [0, 0]})
  writer.write("train", 2, RECORD)
  writer.close()
  tags = sorted({tag for tag, _ in shown(tmp_path)})
  assert {tag.split("/")[0] for tag in tags} == {"eval", "head_shares", "heads", "layers", "speed", "train"}
  assert tags[0] == "eval/PPL"
  assert "heads/L00H01" not in tags  # not finite
  assert shown(tmp_path)["train/nonfinite_rows", 1] == 3
  layouts = [v for e in events(tmp_path) for v in e.summary.value if v.tag == "custom_scalars__config__"]
  assert len(layouts) == 1
  found = layout_pb2.Layout.FromString(layouts[0].tensor.string_val[0])
  assert [category.title for category in found.category] == ["training", "entropy of the heads (nats)", "each layer"]
  assert [chart.title for chart in found.category[1].chart][2:] == ["layer 0", "layer 1"]
  assert [chart.title for chart in found.category[2].chart] == ["gradient norm", "temperature"]


def test_every_pattern_of_a_chart_matches_a_curve_and_no_layer_takes_another_ones():
  record = metrics.to_json(RECORD | {"entropy_LxH": np.ones((12, 12)), "entropy_L": np.ones(12)})
  tags = [*charts.scalars("train", record), *charts.scalars("eval", {"loss": 1.0, "perplexity": 2.0})]
  layout = charts.layout(record)
  matched = {
    (category, name): [tag for tag in tags for pattern in patterns if re.match(pattern, tag)]
    for category, of in layout.items()
    for name, patterns in of.items()
  }
  assert all(matched.values())
  layer_1 = matched["entropy of the heads (nats)", "layer 1"]
  assert layer_1 == [f"heads/L01H{head:02d}" for head in range(12)]


def test_images_texts_and_hyperparameters_reach_tensorboard_and_the_outcome_with_them(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write_hparams({"model.norm": "none", "train.seed": 3, "model.bias": True, "eval.max_entropy": None})
  writer.write_images(5, {"heads": np.zeros((4, 6, 3), np.uint8), "two": np.zeros((2, 4, 6, 1))})
  writer.write_texts(5, {"note": "**bold**"})
  writer.write_outcome(success=False)
  writer.flush()
  writer.close()
  (start,), (end,) = hparams(tmp_path, "session_start_info"), hparams(tmp_path, "session_end_info")
  told = start.hparams
  assert sorted(told) == ["model.bias", "model.norm", "train.seed"]
  assert told["train.seed"].number_value == 3 and told["model.bias"].bool_value is True
  assert end.status == api_pb2.STATUS_FAILURE
  assert images(tmp_path) == {("heads", 5): (4, 6), ("two/0", 5): (4, 6), ("two/1", 5): (4, 6)}
  assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # no run of its own for the table
