"""Studies: their files, their table, and (slow) the real trainer under them."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

from PIL import Image
import pytest
from waiting import PATIENCE, until

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.study import Run, execute, runs, table

ROOT = pathlib.Path(__file__).parent.parent
STUDIES = ("compare", "architectures")


def _summary(**changes):
  values = {
    "status": "finished",
    "architecture": "SM+LN+G",
    "perplexity": 39.7,
    "bits_per_byte": 1.5,
    "loss": 3.68,
    "entropy_LxH": [[0.5, 1.5, 2.5, 3.5]] * 6,
    "max_entropy": 3.87,
    "nonfinite_rows_L": [0] * 6,
    "divergence": None,
    "step": 600,
    "seconds": 250.0,
  }
  return values | changes


def _folder(path, run, **changes):
  path.mkdir(parents=True)
  (path / "config.json").write_text(runs.load_config(run).to_json())
  (path / "summary.json").write_text(json.dumps(_summary(**changes)))


@pytest.mark.parametrize("name", STUDIES)
def test_studies_of_the_repository_load(name):
  listed = runs.load_study(ROOT / "configs" / "studies" / f"{name}.py")
  configs = {run.name: runs.load_config(run) for run in listed}
  assert all(c.model.num_layers == 6 and c.data.name == "python_source" for c in configs.values())
  architectures = [config_lib.architecture_name(c) for c in configs.values()]
  assert len(set(architectures)) == len(listed) == {"compare": 4, "architectures": 20}[name]


def test_comparison_starts_from_the_quickstart():
  listed = {run.name: run for run in runs.load_study(ROOT / "configs/studies/compare.py")}
  architectures = {name: config_lib.architecture_name(runs.load_config(run)) for name, run in listed.items()}
  assert architectures == {
    "ereg": "EReg(SM(t)+ScFuFFN)",
    "temperature_only": "SM(t)+ScFuFFN",
    "softmax_only": "SM+ScFuFFN",
    "baseline": "SM+LN+G",
  }


def test_command_is_what_a_user_would_type():
  run = Run("a", "configs/codeparrot_ereg.py:quick", {"train.steps": 4, "model.remat": True, "eval.max_entropy": None})
  assert runs.command(run, pathlib.Path("runs/a"))[1:] == [
    "-m",
    "entropy_attn.main",
    "--config=configs/codeparrot_ereg.py:quick",
    "--workdir=runs/a",
    "--config.train.steps=4",
    "--config.model.remat=true",
    "--config.eval.max_entropy=none",
  ]
  config = runs.load_config(run)
  assert (config.train.steps, config.model.remat, config.eval.max_entropy) == (4, True, None)


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
  with pytest.raises(UserError, match=message):
    runs.load_config(run)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("[]", "no runs"),
    ("None", r"get_study\(\) must return a list of Run"),
    ("['a']", r"get_study\(\) must return a list of Run"),
    ("1 / 0", "study.py:3: ZeroDivisionError: division by zero"),
    ("[Run('a', 'x'), Run('a', 'y')]", "two runs are named 'a'"),
    ("[Run('../a', 'x')]", "not fit for a folder"),
  ],
)
def test_mistakes_in_a_study_are_named(tmp_path, body, message):
  file = tmp_path / "study.py"
  file.write_text(f"from entropy_attn.study import Run\ndef get_study():\n  return {body}\n")
  with pytest.raises(UserError, match=message):
    runs.load_study(file)


def test_table_uses_one_max_for_all_runs(tmp_path):
  listed = [Run("short", "configs/codeparrot_ln_gelu.py:quick"), Run("long", "configs/quickstart.py")]
  _folder(tmp_path / "short", listed[0], max_entropy=3.5)
  _folder(tmp_path / "long", listed[1], perplexity=41.5, max_entropy=4.0)
  result = table.collect(listed, tmp_path, {})
  assert result["max_entropy"] == 4.0
  assert [row["head_shares"] for row in result["runs"]] == [[0.25] * 4] * 2
  assert [row["architecture"] for row in result["runs"]] == ["SM+LN+G", "EReg(SM(t)+ScFuFFN)"]
  text = table.text(result)
  assert len({len(line) for line in text.splitlines()[1:4]}) == 1  # aligned
  assert (
    "41.50      1.500      25 / 25 / 25 / 25 %" in text
    and "Max = 4.00 nats for all runs." in text
    and "4.2 min" in text
  )
  assert table.went_wrong(result) == []
  assert json.loads(json.dumps(result)) == result


def test_table_reports_what_went_wrong(tmp_path):
  sm, strict = "configs/codeparrot_sm.py:quick", {"train.on_nonfinite": "stop"}
  listed = [Run("recorded", sm), Run("stopped", sm, strict), Run("broken", sm), Run("waiting", sm)]
  lost = {
    "status": "diverged",
    "perplexity": None,
    "loss": None,
    "entropy_LxH": [[None, 0.5, 0.5, 3.5]] * 6,
    "nonfinite_rows_L": [0, 3, 0, 0, 0, 4],
    "divergence": {"text": "step 40: not finite first in layer 5"},
  }
  _folder(tmp_path / "recorded", listed[0], **lost)
  _folder(tmp_path / "stopped", listed[1], **lost)
  result = table.collect(listed, tmp_path, {"broken": "No space | left"})
  assert [row["status"] for row in result["runs"]] == ["diverged", "diverged", "failed", "not trained"]
  assert result["runs"][0]["head_shares"] == [0.5, 0.0, 0.0, 0.25]
  assert result["runs"][0]["nonfinite_rows"] == 7
  assert table.went_wrong(result) == ["stopped", "broken"]
  text = table.text(result)
  assert "recorded diverged: step 40: not finite first in layer 5" in text and "broken failed: No space | left" in text
  lines = table.markdown(result).splitlines()
  assert {line.count("|") for line in lines if line.startswith("|")} == {10}


def test_execute_passes_output_on_and_keeps_the_end_of_it(capfd):
  code = "import sys; print('out', flush=True); sys.stderr.write('1%\\r2%\\rerror: no disk\\nbye\\n'); sys.exit(3)"
  status, errors = execute.execute([sys.executable, "-c", code])
  assert status == 3 and errors.endswith("error: no disk\nbye\n")
  shown = capfd.readouterr()
  assert shown.out == "out\n" and shown.err == errors


def test_interrupting_a_command_that_ignores_it_twice_kills_it(tmp_path):
  started, asked = tmp_path / "started", tmp_path / "asked"
  stubborn = f"""
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(asked)!r}).write_text("to end"))
pathlib.Path({str(started)!r}).write_text(str(os.getpid()))
while True:
  time.sleep(600)
"""
  code = f"import sys; from entropy_attn.study import execute; execute.execute([sys.executable, '-c', {stubborn!r}])"
  process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
  until(lambda: started.exists() and started.read_text())
  process.send_signal(signal.SIGINT)
  until(asked.exists)
  process.send_signal(signal.SIGINT)
  assert process.wait(execute.GRACE / 2) != 0  # killed for the second one, before its time to save is over
  with pytest.raises(ProcessLookupError):
    os.kill(int(started.read_text()), 0)


@pytest.fixture
def tiny(tmp_path):
  """Writes a study of the given runs, each a tiny model on this package's own sources, and returns its command."""
  text = tmp_path / "text"
  text.mkdir()
  for path in (ROOT / "entropy_attn").rglob("*.py"):
    shutil.copy(path, text / f"{'_'.join(path.relative_to(ROOT).parts)}.txt")
  overrides = {
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.d_model": 16,
    "model.context_length": 16,
    "model.vocab_size": 300,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.log_every": 1,
    "eval.every": 0,
    "eval.batches": 2,
    "eval.batch_size": 4,
    "data.name": "text_files",
    "data.path": str(text),
    "data.data_dir": str(tmp_path / "data"),
    "data.valid_fraction": 0.3,
  }

  def write(**listed):
    lines = [f"Run({name!r}, {file!r}, {overrides | changes!r})" for name, (file, changes) in listed.items()]
    path = tmp_path / "study.py"
    path.write_text(f"from entropy_attn.study import Run\n\n\ndef get_study():\n  return [{', '.join(lines)}]\n")
    return [sys.executable, "-m", "entropy_attn.study", f"--study={path}", f"--workdir={tmp_path / 'out'}"]

  return write


def _environment():
  """This process's, without the simulated devices that other tests ask XLA for."""
  return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def _call(command, *more):
  options = {"cwd": ROOT, "env": _environment(), "capture_output": True, "text": True}
  return subprocess.run([*command, *more], check=False, **options)


@pytest.mark.slow
def test_a_failing_run_does_not_end_the_study_and_finished_ones_are_not_repeated(tiny, tmp_path):
  out = tmp_path / "out"
  listed = {
    "broken": ("configs/quickstart.py", {"data.path": str(tmp_path / "absent")}),
    "ereg": ("configs/quickstart.py", {}),
    "baseline": ("configs/codeparrot_ln_gelu.py:quick", {}),
  }
  first = _call(tiny(**listed), "--only=broken,ereg", f"--json={tmp_path / 'copy.json'}")
  assert first.returncode == 1, first.stderr
  rows = {row["name"]: row for row in json.loads((out / "table.json").read_text())["runs"]}
  assert {name: row["status"] for name, row in rows.items()} == {
    "broken": "failed", "ereg": "finished", "baseline": "not trained",
  }  # fmt: skip
  assert "absent" in rows["broken"]["reason"]
  assert (tmp_path / "copy.json").read_text() == (out / "table.json").read_text()

  del listed["broken"]
  trained = (out / "ereg" / "summary.json").stat().st_mtime_ns
  second = _call(tiny(**listed))
  assert second.returncode == 0, second.stderr
  assert (out / "ereg" / "summary.json").stat().st_mtime_ns == trained
  assert "[1/2] ereg: finished before" in second.stdout
  assert all(f"{name} " in second.stdout for name in listed)
  assert re.search(r"^\| baseline +\| SM\+LN\+G +\|", (out / "table.md").read_text(), re.MULTILINE)
  with Image.open(out / "comparison.png") as image:
    assert image.width > 1000

  listed["ereg"] = ("configs/quickstart.py", {"train.steps": 5})
  third = _call(tiny(**listed))
  assert third.returncode == 2 and "train.steps: 4 → 5" in third.stderr and third.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_study_stops_its_run_and_resumes_it(tiny, tmp_path):
  command = tiny(ereg=("configs/quickstart.py", {"train.steps": 3000, "train.checkpoint_every": 3000}))
  log, metrics = tmp_path / "stderr", tmp_path / "out" / "ereg" / "metrics.jsonl"
  with log.open("w") as stderr:
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=stderr)
  try:
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 20)
  finally:
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
  errors = log.read_text()
  assert process.returncode == 130
  assert errors.endswith("interrupted: the same command goes on from here\n")
  assert not [line for line in _command_lines() if f"--workdir={tmp_path}" in line]
  done = metrics.read_text().count("\n")
  assert done < 3000

  result = _call(command)
  assert result.returncode == 0, result.stderr
  assert "resumed from step" in result.stdout + result.stderr
  steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"train"' in line]
  assert steps == list(range(1, 3001))


def _command_lines():
  """The command line of every process."""
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):  # it ended meanwhile
      yield path.read_text()
