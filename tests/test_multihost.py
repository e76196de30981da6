"""Two processes over loopback train what one trains: CPU devices, gloo collectives, JAX's own coordinator."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import STEPS, TINY, lines
from waiting import PATIENCE, until

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
# A higher temperature than the published one, whose learned values come near zero and magnify rounding.
TWO = TINY | {"train.accumulation": 2, "model.temperature_init": 0.5}


def start(workdir, overrides, *flags, processes=2, devices=1, variables=({}, {}), own_folders=False):
  """Starts the command `processes` times, as one run; standard output and error go to files beside the run folder."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{free.getsockname()[1]}"
  fields = [f"--config.{name}={value}" for name, value in (TWO | overrides).items()]
  command = [sys.executable, "-m", "entropy_attn.main", "--config=configs/quickstart.py"]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
  started = []
  for index in range(processes):
    multihost = ["--multihost", f"--coordinator={coordinator}", f"--num_processes={processes}"]
    multihost = [*multihost, f"--process_id={index}"] if processes > 1 else []
    with open(f"{workdir}.{index}.out", "w") as out, open(f"{workdir}.{index}.err", "w") as err:
      folder = f"--workdir={workdir}{index if own_folders else ''}"
      arguments = [*command, folder, *fields, *multihost, *flags]
      started.append(subprocess.Popen(arguments, cwd=ROOT, env=env | variables[index], stdout=out, stderr=err))
  return started


def finish(started, workdir, expect=0):
  """Waits for all processes; returns the standard error of each."""
  try:
    codes = [process.wait(timeout=PATIENCE) for process in started]
  finally:
    for process in started:
      process.kill()
  errors = [pathlib.Path(f"{workdir}.{index}.err").read_text() for index in range(len(started))]
  assert codes == [expect] * len(started), "\n".join(errors)
  assert not any("Traceback" in error for error in errors), "\n".join(errors)
  return errors


def assert_same_figures(workdir, alone):
  for kind in ("train", "eval"):
    ours, theirs = lines(workdir, kind), lines(alone, kind)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("loss", "entropy_LxH", *(["grad_norm"] if kind == "train" else [])):
      np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in theirs], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
  """The run folder of one process with one device."""
  workdir = tmp_path_factory.mktemp("runs") / "alone"
  finish(start(workdir, corpus, processes=1), workdir)
  losses = [line["loss"] for line in lines(workdir)]
  assert len(set(losses)) == STEPS  # each step has its own batch: a wrong order would show
  return workdir


@pytest.mark.parametrize(
  "mesh, devices",
  [
    pytest.param({"mesh.data": 2}, 1, id="data"),
    pytest.param({"mesh.fsdp": 2}, 1, id="fsdp"),
    pytest.param({"mesh.tensor": 2}, 1, id="tensor across the processes"),
    pytest.param({"mesh.data": 2, "mesh.tensor": 2}, 2, id="data x tensor"),
  ],
)
def test_two_processes_train_what_one_trains(alone, corpus, tmp_path, mesh, devices):
  workdir = tmp_path / "two"
  finish(start(workdir, corpus | mesh, devices=devices), workdir)
  assert_same_figures(workdir, alone)
  assert json.loads((workdir / "environment.json").read_text())["processes"] == 2
  assert "perplexity" in pathlib.Path(f"{workdir}.0.out").read_text()
  for stream in ("out", "err"):  # the second process only works
    said = pathlib.Path(f"{workdir}.1.{stream}").read_text()
    assert "perplexity" not in said and "step" not in said


def test_two_processes_start_from_a_run_and_learn_from_it_as_one_does(alone, corpus, tmp_path):
  named = corpus | {"init.source": alone, "distill.teacher": alone}
  two, one = tmp_path / "two", tmp_path / "one"
  finish(start(two, named | {"mesh.fsdp": 2}), two)
  finish(start(one, named, processes=1), one)
  assert_same_figures(two, one)
  assert lines(two)[0]["loss"] < lines(alone)[0]["loss"]
  of_two, of_one = (json.loads((workdir / "environment.json").read_text())["sources"] for workdir in (two, one))
  assert of_two == of_one


def test_each_process_may_build_the_dataset_on_a_disk_of_its_own(alone, corpus, tmp_path):
  """As on a TPU slice, where ~/.cache is another disk on each worker."""
  workdir = tmp_path / "two"
  homes = [tmp_path / "home0", tmp_path / "home1"]
  for home in homes:
    home.mkdir()
  started = start(workdir, corpus | {"data.data_dir": "~/built"}, variables=[{"HOME": str(home)} for home in homes])
  finish(started, workdir)
  assert_same_figures(workdir, alone)
  assert all((home / "built" / "packed_text").is_dir() for home in homes)


def test_two_processes_evaluate_as_one(alone, corpus, tmp_path):
  workdir = tmp_path / "copy"
  shutil.copytree(alone, workdir)
  target = tmp_path / "eval.json"
  finish(start(workdir, corpus, "--mode=eval", f"--json={target}"), workdir)
  evaluated, trained = json.loads(target.read_text()), json.loads((alone / "summary.json").read_text())
  assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-5)
  assert evaluated["tokens"] == trained["tokens"]


@pytest.mark.parametrize(
  "number, signalled",
  [(signal.SIGTERM, (0,)), (signal.SIGTERM, (1,)), (signal.SIGTERM, (0, 1)), (signal.SIGINT, (0, 1))],
)
def test_a_signal_stops_all_processes_at_one_step_and_the_run_resumes(corpus, tmp_path, number, signalled):
  """The notice that a platform sends before it takes a machine away; one process may be the only one to get it."""
  workdir = tmp_path / "stopped"
  long = corpus | {"train.steps": 5000, "train.checkpoint_every": 5000, "eval.every": 0}
  started = start(workdir, long)
  _wait_for_step(workdir, started, 5)
  for index in signalled:
    started[index].send_signal(number)
  errors = finish(started, workdir, expect=2)
  (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert 5 <= step < 5000
  for error in errors:
    assert f"saved step {step} in {workdir}" in error
  assert [line["step"] for line in lines(workdir)][-1] == step

  before = lines(workdir)
  started = start(workdir, long)
  _wait_for_step(workdir, started, step + 3)
  started[0].send_signal(signal.SIGTERM)
  errors = finish(started, workdir, expect=2)
  assert f"resumed from step {step}" in errors[0]
  assert lines(workdir)[: len(before)] == before
  assert [line["step"] for line in lines(workdir)] == list(range(1, len(lines(workdir)) + 1))


def _wait_for_step(workdir, started, step):
  def reached():
    assert all(process.poll() is None for process in started)
    return (workdir / "metrics.jsonl").exists() and len(lines(workdir)) >= step

  until(reached)


def test_processes_that_do_not_see_one_folder_stop_at_once_and_say_so(corpus, tmp_path):
  workdir = tmp_path / "run"
  started = start(workdir, corpus, own_folders=True)
  errors = finish(started, workdir, expect=2)
  for error in errors:
    assert "1 of 2 processes do not see what the first one writes there" in error
