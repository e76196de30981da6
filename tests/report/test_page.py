"""What the report is made of, without a browser: its numbers, its size, what it refuses, and that it breaks no run."""

import json
import math
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from page_runs import write_run, write_study
import pytest
import tiny_runs

from entropy_attn import config as config_lib
from entropy_attn import entropy as entropy_lib
from entropy_attn.errors import UserError
from entropy_attn.private.price import lines, predict
from entropy_attn.private.program import spec
from entropy_attn.report.page import charts, data, extra, live, page, price, series


def command(*flags):
  arguments = [sys.executable, "-m", "entropy_attn.report", *flags]
  return subprocess.run(arguments, cwd=tiny_runs.ROOT, capture_output=True, text=True)


def test_packed_numbers_come_back_within_a_part_of_each_heads_range():
  values = np.random.default_rng(0).normal(size=(50, 3, 4)) * np.logspace(-6, 3, 12).reshape(3, 4)
  values[3, 1, 2] = np.nan
  values[:, 2, 3] = np.nan  # a head without any
  values[:, 0, 0] = 0.25  # a constant one
  back = series.unpack(series.pack(values)).reshape(values.shape)
  assert np.array_equal(np.isnan(back), np.isnan(values))
  spread = np.nanmax(values[:, :, :3], axis=0) - np.nanmin(values[:, :, :3], axis=0)
  assert np.all(np.nanmax(np.abs(back - values)[:, :, :3], axis=0) <= spread / 131_000 + 1e-9 * np.abs(spread))
  assert np.all(back[:, 0, 0] == 0.25)


@pytest.mark.parametrize("count, most", [(1, 2), (5, 10), (700, 100), (7, 2)])
def test_thinned_records_keep_both_ends(count, most):
  kept = series.thin(count, most)
  assert kept[0] == 0 and kept[-1] == count - 1 and len(kept) == min(count, most)


@pytest.mark.parametrize("sides", entropy_lib.SIDES)
@pytest.mark.parametrize("ceiling", entropy_lib.CEILINGS)
def test_shares_of_the_penalty_are_those_of_the_penalty_itself(sides, ceiling):
  length, gamma = 16, 0.25
  largest = math.log(length) if ceiling == "log_T" else config_lib.causal_ceiling(length)
  entropy_LxH = np.random.default_rng(1).uniform(0, largest, (3, 4))
  thresholds_LxH = np.random.default_rng(2).uniform(0.2, 0.8, (3, 4))
  strengths_LxH = np.random.default_rng(3).normal(size=(3, 4))
  known = {"gamma": gamma, "sides": sides, "largest": largest}
  shares = series.penalty_shares(entropy_LxH[None], thresholds_LxH[None], **known)[0]
  weights_LxH = np.asarray(entropy_lib.head_weights(jnp.asarray(strengths_LxH)))
  weighted = series.penalty_shares(entropy_LxH[None], thresholds_LxH[None], weights_LxH, **known)[0]
  options = {"gamma": gamma, "reduction": "head_mean", "sides": sides, "ceiling": ceiling}
  of_head = lambda l, h: entropy_lib.penalty(
    jnp.full((1, 1, length, 1), entropy_LxH[l, h]), jnp.full((1, 1), thresholds_LxH[l, h]), **options
  )
  costs = np.array([[of_head(l, h) for h in range(4)] for l in range(3)])
  assert 0 < np.sum(costs > 0) < 12
  np.testing.assert_allclose(shares, costs / costs.sum(), rtol=2e-5)
  costs = costs * np.exp(strengths_LxH)
  np.testing.assert_allclose(weighted, costs / costs.sum(), rtol=2e-5)


def test_where_nothing_is_penalised_every_share_is_zero():
  even = np.full((1, 2, 2), 0.5)
  assert np.all(series.penalty_shares(even, even, gamma=0.2, sides="both", largest=1.0) == 0)


def test_a_run_is_shown_as_it_was_recorded(tmp_path):
  config = write_run(tmp_path, records=20)
  (run,) = data.load(tmp_path)["runs"]
  recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  trained = [record for record in recorded if record["kind"] == "train"]
  assert run["steps"] == [record["step"] for record in trained]
  assert run["architecture"] == config_lib.architecture_name(config) and run["status"] == "finished"
  for name, field in (("entropy", "entropy_LxH"), ("temperature", "temperature_LxH"), ("thresholds", "thresholds_LxH")):
    shown = series.unpack(run[name]).reshape(20, 3, 4)
    np.testing.assert_allclose(shown, [record[field] for record in trained], atol=1e-4)
  assert run["config"]["model.num_layers"] == "3" and run["divergence"] is None
  last = np.array(trained[-1]["entropy_LxH"])
  collapsed = int(np.sum(last < run["max"] / 4))
  assert 0 < collapsed < 12 and run["verdict"][1][1] == f"{collapsed} of 12"


def test_a_model_without_temperature_or_regulariser_has_neither(tmp_path):
  write_run(tmp_path, "ln_gelu")
  (run,) = data.load(tmp_path)["runs"]
  assert run["temperature"] is None and run["thresholds"] is None and run["penalty"] is None and run["share"] is None


def test_thresholds_that_are_not_recorded_are_those_of_the_config(tmp_path):
  config = write_run(tmp_path)
  lines_of = (tmp_path / "metrics.jsonl").read_text().splitlines()
  stripped = [{k: v for k, v in json.loads(line).items() if k != "thresholds_LxH"} for line in lines_of]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stripped))
  (run,) = data.load(tmp_path)["runs"]
  assert np.all(series.unpack(run["thresholds"]) == config.regularizer.threshold_init)


def test_the_price_is_that_of_the_prediction_and_keys_grow_with_threads(tmp_path):
  config = write_run(tmp_path)
  cost = price.of_run(tmp_path, config)
  expected = predict.of_config(config, spec.transforms_for(config.model), offline=True)
  for line in lines.LINES.values():
    found = price.latency(cost, *line)
    assert found["online"] + found["offline"] == pytest.approx(lines.latency(expected, *line), rel=1e-4)
  for threads in (1, 3):
    other = predict.of_config(config, spec.transforms_for(config.model), offline=True, threads=threads)
    grown = other["total_bytes"] - expected["total_bytes"]
    assert cost["keys"][threads - 1] - cost["keys"][1] == pytest.approx(grown, rel=1e-3)


def test_a_recorded_inference_of_the_whole_model_is_shown_instead(tmp_path):
  config = write_run(tmp_path)
  profile = predict.of_config(config, spec.transforms_for(config.model), 7, offline=True, threads=4)
  direct, slow = {"rtt": 0.0, "bandwidth": None}, {"rtt": 0.08, "bandwidth": 1e7}
  for name, measured, link in (("part", 2, direct), ("waiting", 3, slow), ("whole", 3, direct)):
    content = profile | {"measured_layers": measured, "num_layers": 3, "link": link}
    content |= {"length": 7 if name == "whole" else 5}
    (tmp_path / f"private_profile_{name}.json").write_text(json.dumps(content))
  cost = price.of_run(tmp_path, config)
  assert "measured" in cost["source"] and cost["length"] == 7 and cost["threads"] == 4


def test_the_report_of_a_large_run_is_small(tmp_path):
  write_run(tmp_path, layers=12, heads=12, records=700)
  assert len(page.render(tmp_path).encode()) < 3e6
  (run,) = data.load(tmp_path)["runs"]
  assert len(run["steps"]) == 700  # nothing had to be left out


def test_a_study_is_thinned_to_what_a_page_may_hold(tmp_path, monkeypatch):
  write_study(tmp_path, {name: {} for name in ("one", "two")})
  monkeypatch.setattr(series, "BUDGET", 12 * 4 * 20)  # as many as one of both has
  for run in data.load(tmp_path)["runs"]:
    assert len(run["steps"]) == 10 and run["recorded"] == 20 and run["steps"][-1] == 200


def test_what_a_run_is_called_is_no_markup(tmp_path):
  nasty = "</script><script>bad()</script>"
  write_study(tmp_path, {"one": {}, "two": {}})
  table = json.loads((tmp_path / "table.json").read_text())
  table["runs"][0] |= {"name": nasty, "architecture": nasty, "reason": nasty}
  (tmp_path / "table.json").write_text(json.dumps(table))
  text = page.render(tmp_path)
  assert nasty not in text and "&lt;script&gt;bad()" in text and "<script>bad" not in text


@pytest.mark.parametrize("count, scrolls", [(12, False), (13, True)])
def test_a_long_table_of_runs_does_not_push_the_heads_off_the_screen(tmp_path, count, scrolls):
  write_study(tmp_path, {f"run{i}": {} for i in range(count)})
  text = page.render(tmp_path)
  assert text.count('<button type="button">run') == count
  assert ('<div class="rows" role="region" aria-label="All runs" tabindex="0">' in text) == scrolls


def test_a_study_without_a_table_yet_and_a_run_that_cannot_be_read(tmp_path):
  write_study(tmp_path, {"one": {}, "two": {}})
  (tmp_path / "table.json").unlink()
  assert [run["name"] for run in data.load(tmp_path)["runs"]] == ["one, seed0", "two, seed0"]
  (tmp_path / "two" / "seed0" / "metrics.jsonl").unlink()
  found = data.load(tmp_path)
  assert [run["name"] for run in found["runs"]] == ["one, seed0"]
  assert len(found["left_out"]) == 1 and "metrics.jsonl" in found["left_out"][0]
  text = page.render(tmp_path)
  assert "Left out" in text and "<img " in text


def test_every_seed_of_a_study_is_a_run_of_its_own(tmp_path):
  write_study(tmp_path, {"one": {}})
  write_run(tmp_path / "one" / "seed1", diverged=True)
  table = json.loads((tmp_path / "table.json").read_text())
  table["runs"][0] |= {"folders": ["one/seed0", "one/seed1"], "perplexity": 22.5, "perplexity_sd": 0.25}
  (tmp_path / "table.json").write_text(json.dumps(table))
  assert [run["name"] for run in data.load(tmp_path)["runs"]] == ["one, seed0", "one, seed1"]
  text = page.render(tmp_path)
  assert "22.50 ± 0.25 over the seeds" in text
  first, second = re.findall(r"<tr data-run.*?</tr>", text)
  assert "finished" in first and "diverged" not in first and "diverged" in second


def test_a_run_from_before_a_field_was_there_is_shown(tmp_path):
  config = write_run(tmp_path)
  saved = json.loads(config.to_json())
  del saved["regularizer"]["sides"], saved["model"]["remat"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  (run,) = data.load(tmp_path)["runs"]
  assert run["penalty"]["sides"] == "both" and "model.remat" in run["config"]


def test_bad_folders_are_named(tmp_path):
  with pytest.raises(UserError, match="neither a run nor a study"):
    data.load(tmp_path)
  with pytest.raises(UserError, match="is no folder"):
    data.load(tmp_path / "none")
  write_run(tmp_path / "run")
  (tmp_path / "run" / "metrics.jsonl").write_text("")
  with pytest.raises(UserError, match="recorded nothing yet"):
    data.load(tmp_path / "run")
  (tmp_path / "run" / "metrics.jsonl").unlink()
  with pytest.raises(UserError, match=r"holds no metrics.jsonl"):
    data.load(tmp_path / "run")
  for content in ("{", '{"runs": [1]}'):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(UserError, match=r"table\.json"):
      data.load(tmp_path)


def test_the_command_writes_the_file_or_says_in_a_line_what_is_wrong(tmp_path):
  write_run(tmp_path / "run")
  out = tmp_path / "page.html"
  done = command(f"--workdir={tmp_path / 'run'}", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert out.read_text().startswith("<!doctype html>") and str(out) in done.stdout
  (tmp_path / "empty").mkdir()
  for flags in (
    (),
    (f"--workdir={tmp_path / 'nowhere'}",),
    (f"--workdir={tmp_path / 'empty'}",),
    (f"--workdir={tmp_path / 'run'}", "--port=1"),
    (f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'none' / 'page.html'}"),
  ):
    wrong = command(*flags)
    assert wrong.returncode == 2, (flags, wrong.stdout)
    assert wrong.stderr.startswith("error: ") and len(wrong.stderr.splitlines()) == 1


def test_without_the_packages_it_says_which_and_a_run_goes_on(tmp_path, monkeypatch):
  write_run(tmp_path)
  monkeypatch.setattr(extra, "installed", lambda: False)
  with pytest.raises(UserError, match=r"requirements-report\.txt"):
    page.render(tmp_path)
  live.Live(tmp_path).update(at_once=True)
  assert not (tmp_path / "report.html").exists()


def test_a_run_writes_it_at_most_once_a_minute_and_at_its_end(tmp_path, monkeypatch):
  now, written = [100.0], []

  def write(_):
    written.append(now[0])
    now[0] += seconds

  monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(page, "write", write)
  report, seconds = live.Live(tmp_path), 0.5
  for now[0] in (110.0, 159.0, 161.0, 162.0, 221.0, 222.0):
    report.update()
  assert written == [161.0, 222.0]
  report.update(at_once=True)
  assert len(written) == 3
  report, seconds = live.Live(tmp_path), 10.0
  for now[0] in (1000.0, 1100.0, 1400.0, 1600.0):  # what takes long is done seldom
    report.update()
  assert written[3:] == [1000.0, 1600.0]


def test_a_report_that_cannot_be_written_is_told_once_and_breaks_nothing(tmp_path, monkeypatch, capsys):
  def fail(_):
    raise ValueError("no such colour")

  monkeypatch.setattr(page, "write", fail)
  report = live.Live(tmp_path)
  for _ in range(3):
    report.update(at_once=True)
  (line,) = capsys.readouterr().err.splitlines()
  assert "no such colour" in line


def test_the_program_of_the_charts_is_kept_and_a_damaged_copy_made_anew(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  made = []

  def make():
    made.append("")
    return "a program\nof two lines"

  for _ in range(2):
    assert charts._kept("vega.js", "1", make) == "a program\nof two lines"
  assert len(made) == 1
  (kept,) = (tmp_path / "entropy_attn").iterdir()
  kept.write_text(kept.read_text()[:-3])
  assert charts._kept("vega.js", "1", make) == charts._kept("vega.js", "1", make) == "a program\nof two lines"
  assert len(made) == 2
  charts._kept("vega.js", "2", make)
  assert len(made) == 3
  monkeypatch.setenv("XDG_CACHE_HOME", str(kept / "no folder"))
  assert charts._kept("vega.js", "1", make) == "a program\nof two lines"


def test_a_run_ends_with_its_report(tmp_path, corpus):
  workdir = tmp_path / "run"
  tiny_runs.run(workdir, corpus, "--report")
  text = (workdir / "report.html").read_text()
  reached = json.loads((workdir / "summary.json").read_text())
  assert f"<dd>{reached['perplexity']:.2f}</dd>" in text
