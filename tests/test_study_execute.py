"""How a study trains: its commands side by side, in their order, and what is left of them when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys

from command_line import ROOT, environment
import pytest
from waiting import PATIENCE, until

from entropy_attn.study import Run, Study, execute, runs

QUICK = "configs/quickstart.py"
# A training's stead: it notes when and how it ran, and leaves a summary.
STAND_IN = """
import json, os, pathlib, sys, time
folder, text, sleep = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
begun = time.monotonic()
folder.mkdir(parents=True, exist_ok=True)
time.sleep(sleep)
if text.startswith("error"):
  print("on the way"); print(text, file=sys.stderr); print("bye", file=sys.stderr); sys.exit(2)
cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
memory = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
note = {"begun": begun, "ended": time.monotonic(), "cpus": cpus, "memory": memory}
(folder / "note.json").write_text(json.dumps(note))
if text != "nothing":
  (folder / "summary.json").write_text(json.dumps({"status": text, "perplexity": 1.0, "seconds": 1.0}))
sys.exit(text == "diverged")
"""


@pytest.fixture
def stand_ins(monkeypatch):
  """Has the runs' first override say what becomes of them, in place of training."""

  def command(job, workdir):
    become = job.run.overrides.get("become", "finished")
    return [sys.executable, "-c", STAND_IN, str(workdir / job.name), become, str(job.run.overrides.get("sleep", 0))]

  monkeypatch.setattr(execute, "command", command)
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)


def note(workdir, name):
  return json.loads((workdir / name / "note.json").read_text())


def test_a_run_that_fails_or_diverges_does_not_stop_the_others(stand_ins, tmp_path, capfd):
  study = Study([
    Run("broken", QUICK, {"become": "error: no disk"}), Run("lost", QUICK, {"become": "diverged"}),
    Run("mute", QUICK, {"become": "nothing"}), Run("good", QUICK, {}, (0, 1)),
  ])  # fmt: skip
  told = []
  failures = execute.train_all(runs.jobs(study), tmp_path, on_finish=lambda failures: told.append(len(failures)))
  assert failures["broken/seed0"].startswith("no disk (") and "ended without a summary" in failures["mute/seed0"]
  assert set(failures) == {"broken/seed0", "mute/seed0"} and len(told) == 5
  log = (tmp_path / "broken" / "seed0.log").read_text()
  assert log.startswith("$ ") and log.endswith("error: no disk\nbye\n") and "on the way\n" in log
  shown = capfd.readouterr().err
  assert "[5/5] good/seed1: finished, PPL 1.00, 1 s" in shown and "no disk" in shown and "on the way" not in shown

  again = execute.train_all(runs.jobs(study), tmp_path)
  assert set(again) == set(failures)
  assert "3 of 5 runs have an outcome from before" in capfd.readouterr().err


def test_as_many_run_side_by_side_as_asked_each_on_its_part_of_the_machine(stand_ins, tmp_path):
  study = Study([Run(name, QUICK, {"sleep": 0.5}) for name in "abcd"])
  assert execute.train_all(runs.jobs(study), tmp_path, side_by_side=2) == {}
  notes = [note(tmp_path, f"{name}/seed0") for name in "abcd"]
  begun = [n["begun"] for n in notes]
  assert max(sum(n["begun"] <= at < n["ended"] for n in notes) for at in begun) == 2
  assert {n["memory"] for n in notes} == {"0.450"}
  mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  if len(mine) >= 2:
    parts = {tuple(n["cpus"]) for n in notes}
    assert len(parts) == 2 and sorted(cpu for part in parts for cpu in part) == mine


def test_cpus_are_dealt_without_rest_and_shared_where_they_are_too_few(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
  assert execute.shares_of_cpus(1) == [""]
  assert execute.shares_of_cpus(2) == ["0,1", "2,5,7"]
  assert execute.shares_of_cpus(5) == ["0", "1", "2", "5", "7"]
  assert execute.shares_of_cpus(6) == [""] * 6


def test_who_starts_from_another_run_waits_for_it_and_fails_with_it(stand_ins, tmp_path):
  after = lambda name: {"data.path": f"{{folder:{name}}}"}
  study = Study([
    Run("student", QUICK, after("teacher")), Run("teacher", QUICK, {"sleep": 0.5}),
    Run("orphan", QUICK, after("lost")), Run("lost", QUICK, {"become": "diverged"}),
  ])  # fmt: skip
  failures = execute.train_all(runs.jobs(study), tmp_path, side_by_side=4)
  assert failures == {"orphan/seed0": "it needs lost/seed0, which has not finished"}
  assert note(tmp_path, "student/seed0")["begun"] > note(tmp_path, "teacher/seed0")["ended"]
  assert not (tmp_path / "orphan" / "seed0").exists()


STUBBORN = """
import os, pathlib, signal, sys, time
started, asked = map(pathlib.Path, sys.argv[1:3])
signal.signal(signal.SIGTERM, lambda *_: asked.write_text("to end"))
started.write_text(str(os.getpid()))
while True:
  time.sleep(600)
"""
STUDY_OF_ONE = """
import pathlib, sys
from entropy_attn.study import Run, Study, execute, runs
execute.command = lambda job, workdir: [sys.executable, "-c", *sys.argv[2:]]
execute.train_all(runs.jobs(Study([Run("a", "x")])), pathlib.Path(sys.argv[1]))
"""


@pytest.mark.parametrize("stopped_by", [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_ends_asks_its_runs_to_save_and_a_second_interrupt_kills_them(tmp_path, stopped_by):
  if stopped_by == signal.SIGKILL and sys.platform != "linux":
    pytest.skip("only Linux tells a process that its parent died")
  started, asked = tmp_path / "started", tmp_path / "asked"
  code = ["-c", STUDY_OF_ONE, str(tmp_path / "out"), STUBBORN, str(started), str(asked)]
  process = subprocess.Popen([sys.executable, *code], stderr=subprocess.DEVNULL, cwd=ROOT)
  until(lambda: started.exists() and started.read_text(), process)
  process.send_signal(stopped_by)
  until(asked.exists)
  child = int(started.read_text())
  if stopped_by == signal.SIGKILL:
    os.kill(child, signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    return
  process.send_signal(signal.SIGINT)
  assert process.wait(execute.GRACE / 2) != 0  # killed for the second one, before its time to save is over
  with pytest.raises(ProcessLookupError):
    os.kill(child, 0)


@pytest.fixture
def tiny(tmp_path):
  """Writes a study of the given runs, each a tiny model on this package's own sources, and returns its command."""
  text = tmp_path / "text"
  text.mkdir()
  for path in (ROOT / "entropy_attn").rglob("*.py"):
    shutil.copy(path, text / f"{'_'.join(path.relative_to(ROOT).parts)}.txt")
  overrides = {
    "model.num_layers": 2, "model.num_heads": 2, "model.d_model": 16, "model.context_length": 16,
    "model.vocab_size": 300, "train.steps": 4, "train.batch_size": 4, "train.log_every": 1, "eval.every": 0,
    "eval.batches": 2, "eval.batch_size": 4, "data.name": "text_files", "data.path": str(text),
    "data.data_dir": str(tmp_path / "data"), "data.valid_fraction": 0.3,
  }  # fmt: skip

  def write(out="out", seeds=(0,), **listed):
    lines = [f"Run({name!r}, {file!r}, {overrides | of!r}, {seeds!r})" for name, (file, of) in listed.items()]
    path = tmp_path / "mine.py"
    path.write_text(
      f"from entropy_attn.study import Run, Study\n\n\ndef get_study(scale):\n  return Study([{', '.join(lines)}])\n"
    )
    return [sys.executable, "-m", "entropy_attn.study", f"--study={path}", f"--workdir={tmp_path / out}", "--noreport"]

  return write


def _call(command, *more, expect=0):
  options = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True}
  done = subprocess.run([*command, *more], check=False, **options)
  assert done.returncode == expect, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  return done


def _numbers(workdir):
  """The rows of a study, without what differs between two trainings of the same: time, commit, where its data lies."""
  result = json.loads((workdir / "table.json").read_text())
  del result["study"]["commit"]
  for row in result["runs"]:
    del row["seconds"], row["commits"], row["overrides"]
  return result


BOTH = {"ereg": (QUICK, {}), "base": ("configs/codeparrot_ln_gelu.py:quick", {})}


@pytest.mark.slow
def test_two_at_a_time_or_commands_run_by_hand_reach_what_one_after_the_other_does(tiny, tmp_path):
  _call(tiny("one", (0, 1), **BOTH))
  _call(tiny("two", (0, 1), **BOTH), "--jobs=2", f"--override=data.data_dir={tmp_path / 'built_by_two'}")
  alone, two = _numbers(tmp_path / "one"), _numbers(tmp_path / "two")
  assert alone == two and all(row["perplexity"] for row in alone["runs"])

  by_hand = tiny("hand", (0, 1), **BOTH)
  lines = _call(by_hand, "--print-commands").stdout.splitlines()
  assert len(lines) == 4 and not (tmp_path / "hand").exists()
  for line in lines[::-1]:
    subprocess.run(line, shell=True, cwd=ROOT, env=environment(), capture_output=True, check=True)
  assert "nothing is missing" in _call(by_hand, "--print-commands").stderr
  trained = [path.stat().st_mtime_ns for path in sorted((tmp_path / "hand").rglob("summary.json"))]
  _call(by_hand)
  assert trained == [path.stat().st_mtime_ns for path in sorted((tmp_path / "hand").rglob("summary.json"))]
  assert _numbers(tmp_path / "hand") == alone


@pytest.mark.slow
def test_what_failed_was_deleted_or_damaged_is_mended_by_the_same_command(tiny, tmp_path):
  out = tmp_path / "out"
  broken = {"broken": (QUICK, {"data.path": str(tmp_path / "absent")})}
  first = _call(tiny(**broken, **BOTH), "--only=broken", "--only=ereg", f"--json={tmp_path / 'copy.json'}", expect=1)
  rows = {row["name"]: row for row in json.loads((out / "table.json").read_text())["runs"]}
  assert {name: row["status"] for name, row in rows.items()} == {
    "broken": "failed", "ereg": "finished", "base": "not trained",
  }  # fmt: skip
  assert "absent" in rows["broken"]["reason"] and "absent" in first.stdout
  assert (tmp_path / "copy.json").read_text() == (out / "table.json").read_text()

  summary = out / "ereg" / "seed0" / "summary.json"
  trained = summary.stat().st_mtime_ns
  _call(tiny(**BOTH))
  assert summary.stat().st_mtime_ns == trained and (out / "comparison.png").exists()

  (out / "ereg" / "seed0" / "config.json").write_text("{")
  shutil.rmtree(out / "base" / "seed0")
  damaged = _call(tiny(**BOTH), expect=1)
  assert "config.json is not a run's config" in damaged.stdout
  assert (out / "base" / "seed0" / "summary.json").exists()  # trained again

  shutil.rmtree(out / "ereg" / "seed0")
  assert _call(tiny(**BOTH)).stdout.count("finished") == 2
  changed = _call(tiny(**BOTH | {"ereg": (QUICK, {"train.steps": 5})}), expect=2)
  assert "train.steps: 4 → 5" in changed.stderr and changed.stderr.count("\n") == 1
  other = _call([*tiny(**BOTH)[:-2], "--study=configs/studies/compare.py:smoke", f"--workdir={out}"], expect=2)
  assert "is the folder of the study mine:small, not of compare:smoke" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_saves_its_run_and_goes_on_with_it(tiny, tmp_path, number):
  command = tiny(ereg=(QUICK, {"train.steps": 3000, "train.checkpoint_every": 3000}))
  metrics = tmp_path / "out" / "ereg" / "seed0" / "metrics.jsonl"
  process = subprocess.Popen(
    command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )
  try:
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 20, process)
  finally:
    process.send_signal(number)
    errors = process.communicate(timeout=PATIENCE)[1] if number == signal.SIGINT else ""
    process.wait(PATIENCE)
  if number == signal.SIGINT:
    assert process.returncode == 130 and errors.endswith("interrupted: the same command goes on from here\n")
    assert metrics.read_text().count("\n") < 3000
  _call(command)  # where the run of a killed study still saves, it is waited for
  assert "resumed from step" in (tmp_path / "out" / "ereg" / "seed0.log").read_text()
  steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"train"' in line]
  assert steps == list(range(1, 3001))
