"""What came out of a study: its rows, their spread and tests, and the table in each form."""

import csv
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from entropy_attn.errors import UserError
from entropy_attn.report import tables
from entropy_attn.run import folder
from entropy_attn.study import Run, Study, pairs, record, render, runs, table

SMALL = {"model.num_layers": 2, "model.num_heads": 2, "model.d_model": 16, "model.context_length": 32}
BASE, EREG = "configs/codeparrot_ln_gelu.py:quick", "configs/quickstart.py"


def _summary(**changes):
  values = {
    "status": "finished",
    "perplexity": 39.7,
    "bits_per_byte": 1.5,
    "entropy_LxH": [[0.5, 1.5, 2.5, 3.5]] * 6,
    "max_entropy": 3.87,
    "nonfinite_rows_L": [0] * 6,
    "divergence": None,
    "step": 600,
    "seconds": 250.0,
  }
  return values | changes


def fill(workdir, study, *, commit="a" * 40, **changes):
  """Writes what a training would of each job; `changes` are of the summary of jobs by the run's name, or of all."""
  configs = {job: runs.load_config(job, workdir) for job in runs.jobs(study)}
  for job, config in configs.items():
    of = changes.get(job.run.name, {})
    if of is None:
      continue
    path = workdir / job.name
    path.mkdir(parents=True)
    (path / "config.json").write_text(config.to_json())
    (path / "environment.json").write_text(json.dumps({"git_commit": commit}))
    (path / "metrics.jsonl").write_text('{"kind": "train", "step": 600}\n')
    (path / "summary.json").write_text(json.dumps(_summary(**{k: v(job) if callable(v) else v for k, v in of.items()})))
  return configs


def collect(workdir, study, failures=None, **changes):
  return table.collect(study, fill(workdir, study, **changes), workdir, failures or {})


def test_head_shares_are_against_one_max_for_all_runs(tmp_path):
  study = Study([Run("short", BASE, SMALL), Run("long", EREG, SMALL)])
  result = collect(tmp_path, study, short={"max_entropy": 3.5}, long={"max_entropy": 4.0})
  assert result["max_entropy"] == 4.0
  assert [row["head_shares"] for row in result["runs"]] == [[0.25] * 4] * 2
  assert [row["architecture"] for row in result["runs"]] == ["SM+LN+G", "EReg(SM(t)+ScFuFFN)"]
  assert [row["architecture_row"] for row in result["runs"]] == ["ln_gelu", "ereg"]
  assert [row["gamma"] for row in result["runs"]] == [None, 0.2]
  assert "Max = 4.00 nats for all runs" in render.text(result)
  assert table.went_wrong(result) == []
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_row_is_the_mean_of_its_seeds_and_says_their_spread(tmp_path):
  study = Study([Run("base", BASE, SMALL, (0, 1, 2)), Run("ereg", EREG, SMALL, (0, 1))], baseline="base")
  found = {"base": [10.0, 11.0, 12.0], "ereg": [12.0, 10.2]}
  heads = [[[0.1, 0.2]], [[3.0, 3.87]]]
  result = collect(
    tmp_path, study,
    base={"perplexity": lambda job: found["base"][job.seed]},
    ereg={"perplexity": lambda job: found["ereg"][job.seed], "entropy_LxH": lambda job: heads[job.seed]},
  )  # fmt: skip
  base, ereg = result["runs"]
  assert base["perplexities"] == found["base"] and base["perplexity"] == pytest.approx(np.mean(found["base"]))
  assert base["perplexity_sd"] == pytest.approx(np.std(found["base"], ddof=1))
  assert base["change"] == 0 and ereg["change"] == pytest.approx(11.1 / 11 - 1)
  assert ereg["head_shares"] == [0.5, 0.0, 0.0, 0.5]  # the mean over seeds
  assert ereg["entropy_LxH"] == heads[0]  # the first seed's
  assert ereg["folders"] == ["ereg/seed0", "ereg/seed1"]
  text = render.text(result)
  assert "11.00 ± 1.00" in text and "+0.9 %" in text and "finished, 3 seeds" in text


def test_a_model_has_its_private_price_or_the_reason_why_not(tmp_path, monkeypatch):
  study = Study([Run("base", BASE, SMALL), Run("ereg", EREG, SMALL), Run("again", BASE, SMALL | {"train.steps": 7})])
  base, ereg, again = collect(tmp_path, study)["runs"]
  for row in (base, ereg):
    price = row["private"]
    assert 0 < price["online_bytes"] < price["bytes"] and 0 < price["online_rounds"] < price["rounds"]
    assert price["lan_online_seconds"] < price["lan_seconds"] < price["wan_seconds"]
  assert ereg["private"]["bytes"] < base["private"]["bytes"]
  assert again["private"] == base["private"]

  def refuse(*_, **__):
    raise UserError("nobody knows how | to")

  table._private.cache_clear()
  monkeypatch.setattr(table.predict, "of_config", refuse)
  result = collect(tmp_path / "other", study)
  table._private.cache_clear()
  assert [row["private"] for row in result["runs"]] == [None] * 3
  assert "No private price for base, ereg, again: nobody knows how | to" in render.text(result)


def test_what_went_wrong_is_said(tmp_path):
  sm, strict = "configs/codeparrot_sm.py:quick", {"train.on_nonfinite": "stop"}
  study = Study([Run(name, sm, SMALL) for name in ("recorded", "broken", "waiting")] + [
    Run("stopped", sm, SMALL | strict), Run("partly", sm, SMALL, (0, 1)),
  ])  # fmt: skip
  lost = {
    "status": "diverged",
    "perplexity": None,
    "entropy_LxH": [[None, 0.5, 0.5, 3.5]] * 6,
    "nonfinite_rows_L": [0, 3, 0, 0, 0, 4],
    "divergence": {"text": "step 40: not finite first in layer 5"},
  }
  configs = fill(tmp_path, study, recorded=lost, stopped=lost, broken=None, waiting=None, partly={})
  (tmp_path / "partly" / "seed1" / "summary.json").unlink()
  result = table.collect(study, configs, tmp_path, {"broken/seed0": "No space | left"})
  statuses = {row["name"]: row["status"] for row in result["runs"]}
  assert statuses == {
    "recorded": "diverged", "broken": "failed", "waiting": "not trained", "stopped": "diverged", "partly": "partial",
  }  # fmt: skip
  assert result["runs"][0]["head_shares"] == [0.5, 0.0, 0.0, 0.25] and result["runs"][0]["nonfinite_rows"] == 7
  assert table.went_wrong(result) == ["broken", "stopped"]
  text = render.text(result)
  assert "recorded diverged: step 40: not finite first in layer 5" in text and "broken failed: No space | left" in text
  assert "1 of 2 seeds are not trained" in text
  lines = [line for line in render.markdown(result).splitlines() if line.startswith("|")]
  assert {line.count("|") - line.count(r"\|") for line in lines} == {12, 14}
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_runs_of_another_commit_are_named_below_the_table(tmp_path):
  now = folder.git_commit()
  study = Study([Run("old", BASE, SMALL), Run("new", EREG, SMALL)])
  configs = fill(tmp_path, study, commit="b" * 40 + "+changes")
  (tmp_path / "new" / "seed0" / "environment.json").write_text(json.dumps({"git_commit": now}))
  text = render.text(table.collect(study, configs, tmp_path, {}))
  assert f"Trained at commit bbbbbbbbbbbb+changes, not {now[:12]}" in text and ": old/seed0." in text
  assert "new/seed0" not in text


def test_pairs_are_tested_over_the_seeds_that_both_have():
  row = lambda name, seeds, found: {"name": name, "seeds": seeds, "perplexities": found}
  a, b = [3.0, 3.5, 4.1, None], [2.0, 2.7, 3.0, 3.3]
  (found,) = pairs.compare([row("a", [0, 1, 2, 3], a), row("b", [2, 1, 0, 3], [b[2], b[1], b[0], b[3]])], [("a", "b")])
  differences = np.subtract(a[:3], b[:3])
  assert found["seeds"] == [0, 1, 2] and found["differences"] == pytest.approx(list(differences))
  t = differences.mean() / (differences.std(ddof=1) / np.sqrt(3))
  assert found["mean"] == pytest.approx(differences.mean())
  # Student's t with two degrees of freedom has its distribution in closed form.
  assert found["p"] == pytest.approx(1 - t / np.sqrt(t**2 + 2))


@pytest.mark.parametrize(
  ("a", "b", "reason"),
  [
    ([1.0, 2.0], [2.0, 3.5], "2 common seeds: a test needs 3"),
    ([None], [1.0], "0 common seeds"),
    ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], "all differences are equal"),
  ],
)
def test_too_little_is_not_tested(a, b, reason):
  row = lambda name, found: {"name": name, "seeds": list(range(len(found))), "perplexities": found}
  (found,) = pairs.compare([row("a", a), row("b", b)], [("a", "b")])
  assert found["p"] is None and reason in found["reason"]


def test_csv_has_the_numbers_as_they_are(tmp_path):
  study = Study([Run("base", BASE, SMALL, (0, 1)), Run("ereg", EREG, SMALL, published={"perplexity": 3.21})])
  result = collect(tmp_path, study)
  read = list(csv.DictReader(io.StringIO(render.csv(result))))
  assert [row["name"] for row in read] == ["base", "ereg"]
  assert read[0]["seeds"] == "0; 1" and float(read[0]["perplexity"]) == result["runs"][0]["perplexity"]
  assert read[0]["published_perplexity"] == "" and float(read[1]["published_perplexity"]) == 3.21
  assert float(read[1]["private_bytes"]) == result["runs"][1]["private"]["bytes"]


def assert_compiles(tex):
  """That LaTeX has nothing in a table to stumble over: letters, groups, and cells in each row as the columns are."""
  assert tex.isascii()
  body = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
  tabulars = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", body, re.DOTALL)
  assert len(tabulars) == body.count("tabular}") // 2 > 0
  for columns, content in tabulars:
    lines = [line for line in content.splitlines() if line not in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert lines
    for line in lines:
      assert line.endswith(r"\\"), line
      bare = re.sub(r"\\(textbackslash|textasciitilde|textgreater|textless|[%&#_{}$^\\])", "", line)
      maths = re.sub(r"\$[^$]*\$", "", bare)  # each opened is closed, and only there are powers
      assert "$" not in maths and not re.search(r"[#%_^~\\]", maths), line
      assert maths.count("{") == maths.count("}")
      assert bare.count("&") == len(columns) - 1, line


def test_latex_has_nothing_to_stumble_over(tmp_path):
  study = Study([Run("a_b-c+d", BASE, SMALL, (0, 1)), Run("ereg", EREG, SMALL)], baseline="ereg", pairs=[
    ("ereg", "a_b-c+d")
  ])  # fmt: skip
  tex = render.latex(collect(tmp_path, study, failures={"ereg/seed0": "50 % of ~/x_y & \\z {was} lost#1 — é"}))
  assert_compiles(tex)
  assert r"a\_b-c+d" in tex and r"$\mathbf{R}^{32 \times 32}$" in tex and r"39.70 $\pm$ 0.00" in tex
  assert tex.startswith("% \\usepackage{booktabs}\n")
  awkward = ["a_b", "1 % & 2", "$x$", "#1 {y}", "~^\\z", "± × → ≤ λ — é"]
  assert_compiles(tables.latex(awkward, [awkward]))


def test_tables_and_the_figure_are_written_whole(tmp_path):
  study = Study([Run("base", BASE, SMALL), Run("ereg", EREG, SMALL)])
  result = collect(tmp_path, study)
  written, all_drawn = render.write(result, tmp_path)
  assert all_drawn and set(written) == {"table.json", "table.md", "table.csv", "table.tex", "comparison.png"}
  assert json.loads((tmp_path / "table.json").read_text()) == result
  with Image.open(tmp_path / "comparison.png") as image:
    assert image.width > 1000
  many = Study([Run(f"r{i}", BASE, SMALL) for i in range(13)])
  assert "comparison.png" not in render.write(collect(tmp_path / "many", many), tmp_path / "many")[0]


def test_a_folder_of_another_study_is_refused_and_a_changed_run_names_its_field(tmp_path):
  study = Study([Run("base", BASE, SMALL)], name="mine", scale="small")
  configs = fill(tmp_path, study)
  record.write(tmp_path, study, configs)
  assert record.check(tmp_path, study, configs) == {}
  content = json.loads((tmp_path / "study.json").read_text())
  assert (content["study"], content["scale"]) == ("mine", "small")
  assert content["runs"]["base"]["config"]["model"]["d_model"] == 16
  for name, scale in (("other", "small"), ("mine", "paper")):
    other = Study(study.runs, name=name, scale=scale)
    with pytest.raises(UserError, match=f"folder of the study mine:small, not of {name}:{scale}"):
      record.check(tmp_path, other, configs)
  changed = Study([Run("base", BASE, SMALL | {"train.steps": 7})], name="mine", scale="small")
  with pytest.raises(UserError, match="base/seed0 holds a run of another config .train.steps: 600 → 7"):
    record.check(tmp_path, changed, {job: runs.load_config(job, tmp_path) for job in runs.jobs(changed)})
  (tmp_path / "study.json").write_text("{")
  with pytest.raises(UserError, match="study.json is damaged"):
    record.check(tmp_path, study, configs)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("config.json", "{", "is not a run's config"),
    ("config.json", "[]", "is not a run's config"),
    ("config.json", '{"model": 3}', "is not a run's config"),
    ("metrics.jsonl", 'x\n{"kind": "train", "step": 1}\n', "metrics.jsonl:1 is no line of metrics"),
    ("metrics.jsonl", "", "no record of how it came to it"),
  ],
)
def test_a_damaged_run_is_named_and_does_not_stop_the_others(tmp_path, name, content, message):
  study = Study([Run("base", BASE, SMALL), Run("ereg", EREG, SMALL)])
  configs = fill(tmp_path, study)
  (tmp_path / "base" / "seed0" / name).write_text(content)
  damaged = record.check(tmp_path, study, configs)
  assert list(damaged) == ["base/seed0"] and message in damaged["base/seed0"]
  result = table.collect(study, configs, tmp_path, damaged)
  assert table.went_wrong(result) == ["base"] and result["runs"][0]["perplexity"] is None
  assert result["runs"][1]["status"] == "finished"


def test_a_run_of_before_a_field_is_the_run_with_its_default(tmp_path):
  study = Study([Run("base", BASE, SMALL)])
  ((job, config),) = fill(tmp_path, study).items()
  saved = json.loads(config.to_json())
  del saved["model"]["temperature_form"], saved["mesh"]
  (tmp_path / job.name / "config.json").write_text(json.dumps(saved))
  assert record.check(tmp_path, study, {job: config}) == {}
  config = config.copy_and_resolve_references()
  config.model.temperature_form = "log"
  with pytest.raises(UserError, match="model.temperature_form: direct → log"):
    record.check(tmp_path, study, {job: config})
