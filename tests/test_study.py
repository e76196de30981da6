"""Studies: their files at each scale, what they train in which order, and what is wrong in them."""

import pathlib
import shlex
import subprocess
import sys

import pytest

from entropy_attn import config as config_lib
from entropy_attn import fields, published
from entropy_attn.errors import UserError
from entropy_attn.study import Run, Study, runs

ROOT = pathlib.Path(__file__).parent.parent
STUDIES = ("architectures", "collapse", "compare", "gamma", "table3", "table4", "table5", "table6", "table7", "table8")
WITH_NEW_FIELDS = ("open", "free", "recipes")
OUT = pathlib.Path("runs/x")


def load(name, scale):
  return runs.load_study(f"{ROOT}/configs/studies/{name}.py:{scale}")


@pytest.mark.parametrize("scale", runs.SCALES)
@pytest.mark.parametrize("name", (*STUDIES, *WITH_NEW_FIELDS))
def test_studies_of_the_repository_load_and_their_commands_train_what_they_say(name, scale):
  study = load(name, scale)
  jobs = runs.jobs(study)
  assert (study.name, study.scale) == (name, scale)
  assert len({job.name for job in jobs}) == len(jobs) == sum(len(run.seeds) for run in study.runs)
  for job in jobs:
    config = runs.load_config(job, OUT)
    assert config.train.seed == job.seed and config.train.on_nonfinite == "record"
    typed = dict(flag.removeprefix("--config.").split("=", 1) for flag in runs.command(job, OUT)[5:-1])
    parsed = {field: fields.find(field).parse(field, text) for field, text in typed.items()}
    assert {f: config[f.split(".")[0]][f.split(".")[1]] for f in parsed} == parsed
    assert (config.model.d_model == 768) == (scale == "paper")
    assert (config.data.name == "python_source") == (scale != "paper")


@pytest.mark.parametrize("name", ("open", "free", "recipes"))
def test_studies_name_each_row_once_and_compare_what_is_there(name):
  for scale in runs.SCALES:
    study = load(name, scale)
    assert study.baseline in {run.name for run in study.runs}
    assert len({repr(sorted(map(str, run.overrides.items()))) + run.config for run in study.runs}) == len(study.runs)


@pytest.mark.parametrize("name", WITH_NEW_FIELDS)
def test_fields_that_studies_name_are_there(name):
  named = {field for run in load(name, "paper").runs for field in run.overrides}
  assert named <= set(fields.FIELDS)


def test_the_paper_is_trained_at_the_papers_settings():
  for name, architecture in (("table3", "ereg"), ("table7", "ln_gelu"), ("table8", "scfuffn")):
    study = load(name, "paper")
    (job,) = (job for job in runs.jobs(study) if job.run.name == architecture)
    setting = {"table3": "T128", "table7": "T256", "table8": "L18"}[name]
    changed = config_lib.differences(config_lib.codeparrot(setting, architecture), runs.load_config(job, OUT))
    assert changed == ["train.on_nonfinite: stop → record"]


def test_rows_stand_beside_what_was_printed_of_them():
  printed = {run.name: run.published for run in load("table3", "small").runs}
  assert {name: of["perplexity"] for name, of in printed.items() if not of["diverged"]} == {
    name: value for name, value in published.TABLE_2.items() if name != "sm"
  }
  assert printed["sm"]["perplexity"] is None and printed["sm"]["top_share"] == 0.451
  assert (printed["ereg"]["gigabytes"], printed["ereg"]["minutes"]) == (6.43, 4.76)
  assert [run.published["top_share"] for run in load("gamma", "small").runs] == [
    0.007, 0.007, 0.007, 0.0208, 0.0347, 0.0625,
  ]  # fmt: skip
  assert [run.published["perplexity"] for run in load("table5", "smoke").runs] == [
    *published.TABLE_5["wnorm"].values(),
    *published.TABLE_5["snorm"].values(),
  ]
  assert {run.name: run.published["perplexity"] for run in load("table4", "small").runs}["ereg_4.8B"] == 26.55
  assert all(run.published is None for run in load("open", "small").runs if run.name not in ("ereg", "neither"))


def test_comparison_starts_from_the_quickstart():
  jobs = runs.jobs(load("compare", "small"))
  architectures = {job.run.name: config_lib.architecture_name(runs.load_config(job, OUT)) for job in jobs}
  assert architectures == {
    "ereg": "EReg(SM(t)+ScFuFFN)",
    "temperature_only": "SM(t)+ScFuFFN",
    "softmax_only": "SM+ScFuFFN",
    "baseline": "SM+LN+G",
  }
  names = [
    config_lib.architecture_name(runs.load_config(job, OUT)) for job in runs.jobs(load("architectures", "small"))
  ]
  assert len(set(names)) == 20


def test_a_study_of_ours_and_its_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for spec in ("table6:smoke", "configs/studies/table6.py:smoke"):
    study = runs.load_study(spec)
    assert (study.name, study.scale) == ("table6", "smoke")
    for job in runs.jobs(study):
      runs.load_config(job, OUT)
  with pytest.raises(UserError, match="--study=tabel6 is neither a file nor the name of one of ours .*'table6'"):
    runs.load_study("tabel6")


def test_command_is_what_a_user_would_type():
  run = Run("a", "configs/codeparrot_ereg.py:quick", {"train.steps": 4, "model.remat": True, "eval.max_entropy": None})
  (job,) = runs.jobs(Study([run]))
  assert runs.command(job, OUT)[1:] == [
    "-m",
    "entropy_attn.main",
    "--config=configs/codeparrot_ereg.py:quick",
    "--workdir=runs/x/a/seed0",
    "--config.train.steps=4",
    "--config.model.remat=true",
    "--config.eval.max_entropy=none",
    "--config.train.seed=0",
    "--noreport",
  ]
  config = runs.load_config(job, OUT)
  assert (config.train.steps, config.model.remat, config.eval.max_entropy) == (4, True, None)


def test_first_seeds_come_first_and_who_names_another_after_it():
  quick = "configs/quickstart.py"
  student = Run("student", quick, {"data.path": "{folder:teacher}"}, (0, 1, 2))
  jobs = runs.jobs(Study([student, Run("teacher", quick, {}, (0, 1))]))
  assert [job.name for job in jobs] == [
    "teacher/seed0", "student/seed0", "teacher/seed1", "student/seed1", "student/seed2",
  ]  # fmt: skip
  paths = [flag for job in jobs for flag in runs.command(job, OUT) if flag.startswith("--config.data.path")]
  assert paths == [f"--config.data.path=runs/x/teacher/seed{seed}" for seed in (0, 1, 0)]
  assert [job.name for job in runs.chosen(jobs, ["student"])] == [job.name for job in jobs]
  assert [job.name for job in runs.chosen(jobs, ["teacher"])] == ["teacher/seed0", "teacher/seed1"]


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ([{"data.path": "{folder:b}"}, {"data.path": "{folder:a}"}], "waits for itself: a → b → a"),
    ([{"data.path": "{folder:a}"}, {}], "waits for itself: a → a"),
    ([{"data.path": "{folder:teacher}"}, {}], r"the run of {folder:…}='teacher' is not one of a, b"),
  ],
)
def test_runs_that_wait_for_what_never_comes_are_named(overrides, message):
  with pytest.raises(UserError, match=message):
    runs.jobs(Study([Run(name, "x", of) for name, of in zip("ab", overrides, strict=True)]))


def test_the_number_of_seeds_may_be_another():
  study = Study([Run("a", "x", {}, (3,)), Run("b", "x", {}, (0, 1, 2))])
  assert [run.seeds for run in runs.with_seeds(study, 3).runs] == [(3, 0, 1), (0, 1, 2)]
  assert [run.seeds for run in runs.with_seeds(study, 1).runs] == [(3,), (0,)]


def test_overrides_of_the_command_line_hold_for_all_runs():
  study = runs.with_overrides(Study([Run("a", "x", {"train.steps": 1}), Run("b", "x")]), ["train.steps=7"])
  assert [run.overrides for run in study.runs] == [{"train.steps": 7}] * 2


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("train.step=7", "train has no field 'step' .*'steps'"),
    ("train.steps=many", "train.steps='many' must be an integer"),
    ("train.steps", "has not the form group.field=value"),
    ("train.seed=1", "use --seeds=N"),
  ],
)
def test_mistakes_in_an_override_are_named(text, message):
  with pytest.raises(UserError, match=message):
    runs.with_overrides(Study([Run("a", "x")]), [text])


@pytest.mark.parametrize(
  ("run", "message"),
  [
    (Run("a", "configs/absent.py"), "configs/absent.py does not exist"),
    (
      Run("a", "configs/quickstart.py", {"train.step": 1}),
      "run 'a': config: train has no field 'step' .*'steps'",
    ),
    (Run("a", "configs/quickstart.py", {"train.steps": "many"}), "train.steps='many' must be an integer"),
    (Run("a", "configs/quickstart.py", {"model.norm": "rms"}), "model.norm='rms' is not one of"),
    (Run("a", "configs/codeparrot_ereg.py:quik"), "did you mean 'quick'"),
    (Run("a", "tests/test_study.py"), "defines no get_config"),
  ],
)
def test_mistakes_in_a_run_are_named(run, message):
  (job,) = runs.jobs(Study([run]))
  with pytest.raises(UserError, match=message):
    runs.load_config(job, OUT)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("Study([])", "no runs"),
    ("None", r"get_study\(\) must return a Study of Runs"),
    ("[Run('a', 'x')]", r"get_study\(\) must return a Study of Runs"),
    ("Study(['a'])", r"get_study\(\) must return a Study of Runs"),
    ("1 / 0", "study.py:3: ZeroDivisionError: division by zero"),
    ("Study([Run('a', 'x'), Run('a', 'y')])", "two runs are named 'a'"),
    ("Study([Run('../a', 'x')])", "not fit for a folder"),
    ("Study([Run('a', 'x', {}, ())])", "seeds=.* must be different integers"),
    ("Study([Run('a', 'x', {}, (1, 1))])", "seeds=.* must be different integers"),
    ("Study([Run('a', 'x', {'train.seed': 1})])", "overrides train.seed: give its seeds"),
    ("Study([Run('ereg', 'x')], baseline='erg')", "baseline='erg' is not one of ereg .*'ereg'"),
    ("Study([Run('ereg', 'x')], pairs=[('ereg', 'sm')])", "pairs='sm' is not one of ereg"),
  ],
)
def test_mistakes_in_a_study_are_named(tmp_path, body, message):
  file = tmp_path / "study.py"
  file.write_text(f"from entropy_attn.study import Run, Study\ndef get_study(scale):\n  return {body}\n")
  with pytest.raises(UserError, match=message):
    runs.load_study(str(file))


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--study=configs/studies/tabel3.py"], "did you mean configs/studies/table3.py"),
    (["--study=tabel3"], "did you mean 'table3'"),
    (["--study=configs/studies/table3.py:smal"], "'smal' is not one of smoke, small, paper (did you mean 'small'?)"),
    (["--study=configs/studies/table3.py", "--only=erg"], "--only='erg' is not one of"),
    (["--study=configs/studies/table3.py", "--override=train.step=3"], "train has no field 'step'"),
    (["--study=configs/studies/table3.py", "--seeds=0"], "--seeds=0 must be"),
    (["--study=configs/studies/table3.py", "--jobs=0"], "--jobs=0 must be"),
  ],
)
def test_bad_input_is_one_line(tmp_path, flags, message):
  typed = [sys.executable, "-m", "entropy_attn.study", f"--workdir={tmp_path / 'out'}", *flags]
  done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and done.stderr.count("\n") == 1, shlex.join(typed) + done.stderr
  assert message in done.stderr
  assert not (tmp_path / "out").exists()
