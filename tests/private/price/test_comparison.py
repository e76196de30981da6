"""The audit: published numbers next to predictions and recorded runs, and nothing invented between them."""

import dataclasses
import json

import pytest

from entropy_attn import published
from entropy_attn.errors import UserError
from entropy_attn.private import audit
from entropy_attn.private.parties import measure
from entropy_attn.private.price import audit_tables, comparison, predict
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.run import pretrained

BY_NAME = {(row.table, row.model): row for row in published.ROWS}
SCFUFFN = BY_NAME[3, "SM+ScFuFFN"]


@pytest.fixture(scope="module")
def result():
  return comparison.compare([])


def recorded(row, kind="ours", **changes):
  config = comparison.config_of(row)
  transforms = dataclasses.asdict(spec_lib.transforms_for(config.model, comparison.KINDS[kind]))
  run = dict.fromkeys(comparison.MEASURED, 1) | {"config": {"model": config.model.to_dict()}, "length": row.length}
  squares = {"squares": [4 if kind == "ours" else None] * 12, "lowest_exponents": [-12.0] * 12, "threads": 2}
  return (
    run | squares | {"transforms": transforms, "total_bytes": 1.5e9, "measured_layers": 2, "num_layers": 12} | changes
  )


def test_each_row_of_four_tables_is_there():
  assert [(row.table, row.length, row.layers) for row in published.ROWS[::4]] == [
    (3, 128, 12), (4, 512, 12), (7, 256, 12), (8, 128, 18),
  ]  # fmt: skip
  assert (SCFUFFN.gigabytes, SCFUFFN.minutes) == (6.43, 4.76)
  assert BY_NAME[4, "SM+LN+G"].gigabytes == 145.24 and BY_NAME[8, "SM+LN+R"].minutes == 8.04


@pytest.mark.parametrize("row", published.ROWS[:4], ids=lambda row: row.model)
def test_the_ladder_goes_from_stock_to_ours_without_a_gap(row):
  steps, config = comparison.ladder(row), comparison.config_of(row)
  for end, text in ((0, "stock"), (-1, "")):
    whole = predict.of_config(config, spec_lib.transforms_for(config.model, text), row.length, offline=not text)
    assert steps[end]["total_bytes"] == pytest.approx(whole["total_bytes"])
  saved = sum(step["saved_bytes"] for step in steps)
  assert saved == pytest.approx(steps[0]["total_bytes"] - steps[-1]["total_bytes"])


def test_published_latencies_are_shorter_than_their_own_bytes_take(result):
  rows = result["rows"]
  assert all(row["minutes_at_100_megabits"] > row["minutes"] for row in rows)
  both = [(row["table"], row["model"]) for row in rows if row["minutes_at_100_megabits"] / 2 > row["minutes"]]
  assert len(both) == 12 and (3, "SM+LN+G") in both  # even with both directions at once
  assert "all 16 published latencies are shorter" in audit_tables.text(result)
  assert "12 even where both directions run at once" in audit_tables.text(result)


def test_a_published_gelu_costs_the_same_in_every_table(result):
  published_ = [row["published"] for row in result["gelu_bytes_an_element"]]
  assert max(published_) - min(published_) < 4
  assert all(row["ours"] < row["published"] / 5 for row in result["gelu_bytes_an_element"])


def test_ours_costs_less_than_published_and_than_stock_in_every_row(result):
  for row in result["rows"]:
    assert row["ours"]["total_bytes"] < min(row["gigabytes"] * 1e9, row["stock"]["total_bytes"]) / 2


def test_a_recorded_run_goes_to_its_own_row_alone():
  run = recorded(SCFUFFN)
  assert comparison.find_run([run], SCFUFFN, "ours") is run
  assert comparison.find_run([run, recorded(SCFUFFN, total_bytes=2e9)], SCFUFFN, "ours")["total_bytes"] == 2e9
  assert comparison.find_run([run], SCFUFFN, "stock") is None
  for other in (BY_NAME[7, "SM+ScFuFFN"], BY_NAME[8, "SM+ScFuFFN"], BY_NAME[3, "SM+LN+R"]):
    assert comparison.find_run([run], other, "ours") is None


@pytest.mark.slow
def test_engine_runs_stand_in_the_table(tmp_path):
  (tmp_path / "one.json").write_text(json.dumps(recorded(SCFUFFN, total_bytes=1.23e9)))
  text = audit_tables.text(comparison.compare(comparison.measured_runs([tmp_path])))
  line = next(line for line in text.splitlines() if line.startswith("3 ") and " SM+ScFuFFN " in line)
  assert "1.23" in line and "2 of 12 layers run" in text
  (error,) = comparison.compare(comparison.measured_runs([tmp_path]))["errors"]
  assert error["relative_error"]["total_bytes"] == pytest.approx(1.56 / 1.23 - 1, abs=0.02)
  assert any(line.startswith("one ") and "%" in line for line in text.splitlines())


def test_a_file_that_is_no_profile_is_named(tmp_path):
  (tmp_path / "x.json").write_text("{}")
  with pytest.raises(UserError, match="x.json is no profile"):
    comparison.measured_runs([tmp_path])


def test_an_engine_run_is_recorded_under_its_rows_name_and_found_again(tmp_path, monkeypatch):
  asked = []

  def profile(model, transforms, **options):
    asked.append((model, options))
    return recorded(SCFUFFN)

  monkeypatch.setattr(pretrained, "untrained", lambda config: config.model.to_dict())
  monkeypatch.setattr(measure, "profile", profile)
  audit.run_engine(SCFUFFN, "ours", tmp_path)
  assert asked == [(comparison.config_of(SCFUFFN).model.to_dict(), {"length": 128, "layers": 2, "offline": True})]
  (run,) = comparison.measured_runs([tmp_path])
  assert run["file"] == "scfuffn_L12_T128_ours.json"
  assert comparison.find_run([run], SCFUFFN, "ours") is run
