"""A run's folder: its files are written whole or not at all, and what does not fit it is named."""

import json
import os
import signal
import subprocess
import sys

from matplotlib.figure import Figure
import pytest
from waiting import PATIENCE

from entropy_attn import config as config_lib
from entropy_attn import files, owned
from entropy_attn.errors import UserError
from entropy_attn.run import folder, summary

HOLDING = """
import pathlib, sys
from entropy_attn.locks import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config():
  return config_lib.codeparrot("quick", "ereg")


def test_a_folder_holds_its_config_and_its_environment(tmp_path, config):
  with folder.opened(tmp_path / "a" / "run"):
    folder.record(tmp_path / "a" / "run", config)
  assert owned.is_marked(tmp_path / "a" / "run")
  assert config_lib.differences(folder.read_config(tmp_path / "a" / "run"), config) == []
  environment = json.loads((tmp_path / "a" / "run" / "environment.json").read_text())
  assert environment["packages"]["jax"] and environment["processes"] == 1 and environment["devices"]


def test_a_run_of_an_earlier_version_has_what_that_version_did(tmp_path, config):
  folder.record(tmp_path, config)
  saved = json.loads((tmp_path / "config.json").read_text())
  del saved["regularizer"]["thresholds"], saved["distill"], saved["curriculum"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  assert config_lib.differences(folder.read_config(tmp_path), config) == []
  assert folder.check_same_run(tmp_path, config) == []
  config.regularizer.thresholds = "fixed"
  with pytest.raises(UserError, match="regularizer.thresholds: learned → fixed"):
    folder.check_same_run(tmp_path, config)


def test_each_start_is_kept_with_what_changed(tmp_path, config):
  assert folder.record(tmp_path, config) == []
  config.eval.batches = 5
  assert folder.record(tmp_path, config) == ["eval.batches: 0 → 5"]
  starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
  assert [start["changed"] for start in starts] == [[], ["eval.batches: 0 → 5"]]
  (tmp_path / "environment.json").write_bytes(b"\0\0")  # a power cut: nothing that a run depends on
  assert folder.record(tmp_path, config) == []


def test_a_folder_in_use_is_refused_by_name_and_taken_over_from_the_dead(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDING, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  assert holder.stdout.readline() == "held\n"
  with pytest.raises(UserError, match=rf"in use by process {holder.pid} on {os.uname().nodename} since 20\d\d-"):
    with folder.opened(tmp_path):
      pass
  os.kill(holder.pid, signal.SIGKILL)
  holder.communicate(timeout=PATIENCE)
  with folder.opened(tmp_path):
    pass
  with folder.opened(tmp_path):  # it is freed at the end
    pass


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
  path = files.write_json(tmp_path / "summary.json", {"status": "finished", "step": 1})
  before = path.read_bytes()
  files.unfinished(path).symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left"):
    files.write_json(path, {"status": "finished", "step": 2})
  assert path.read_bytes() == before
  with pytest.raises(TypeError):
    files.write_json(path, {"status": object()})
  assert path.read_bytes() == before


def test_figures_are_written_under_their_names(tmp_path):
  paths = folder.write_figures(tmp_path, {"one": Figure(), "two": Figure()})
  assert paths == [tmp_path / "one.png", tmp_path / "two.png"]
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_no_private_profile_overwrites_another(tmp_path):
  profile = {"measured_layers": 2, "length": 8, "transforms": {"fold": True}, "number": 0}
  for number, changes in enumerate(({}, {}, {"length": 9}, {"transforms": {"fold": False}}, {})):
    folder.write_profile(tmp_path, profile | changes | {"number": number}, Figure())
  found = {path.stem: files.read_json(path)["number"] for path in tmp_path.glob("private_profile_*.json")}
  assert sorted(found.values()) == [0, 1, 2, 3, 4]
  assert {path.stem for path in tmp_path.glob("*.png")} == set(found)
  first = next(name for name, number in found.items() if number == 0)
  assert first.startswith("private_profile_L2_T8_") and (found[f"{first}_2"], found[f"{first}_3"]) == (1, 4)


def test_a_folder_that_holds_no_run_or_a_broken_config_is_named(tmp_path, config):
  with pytest.raises(UserError, match=r"holds no run \(no config.json\)"):
    folder.read_config(tmp_path)
  folder.check_same_run(tmp_path, config)  # a new folder is anybody's
  (tmp_path / "config.json").write_text('{"model": ')
  for check in (folder.read_config, lambda workdir: folder.check_same_run(workdir, config)):
    with pytest.raises(UserError, match=r"config.json is not a run's config"):
      check(tmp_path)


def test_fields_that_are_younger_than_a_run_have_their_defaults(tmp_path, config):
  folder.record(tmp_path, config)
  saved = json.loads((tmp_path / "config.json").read_text())
  del saved["model"]["value_residual"], saved["optimizer"]["name"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  assert folder.check_same_run(tmp_path, config) == []
  assert folder.read_config(tmp_path).model.value_residual == "none"
  config.model.value_residual = "fixed"
  with pytest.raises(UserError, match=r"another config \(model.value_residual: none → fixed\)"):
    folder.check_same_run(tmp_path, config)


def test_a_run_of_another_config_is_refused_but_for_what_alters_nothing(tmp_path, config):
  folder.record(tmp_path, config)
  config.train.log_every, config.mesh.fsdp = 3, 2
  assert folder.check_same_run(tmp_path, config) == ["mesh.fsdp: 1 → 2", "train.log_every: 10 → 3"]
  config.regularizer.gamma = 0.3
  with pytest.raises(UserError, match=r"another config \(regularizer.gamma: 0.2 → 0.3\)"):
    folder.check_same_run(tmp_path, config)


def test_a_summary_is_an_outcome_or_none(tmp_path):
  assert summary.read(tmp_path) is None
  summary.write(tmp_path, {"status": "evaluated"})
  assert summary.read(tmp_path) is None
  summary.write(tmp_path, summary.summarize({"parameters": 3}, {"status": "diverged", "loss": float("nan")}))
  assert summary.read(tmp_path) == {"parameters": 3, "status": "diverged", "loss": None}


def test_a_damaged_summary_is_told_and_counts_as_none(tmp_path, capsys):
  summary.write(tmp_path, {"status": "finished", "step": 3})
  whole = (tmp_path / "summary.json").read_bytes()
  for damaged in [b"", b"\0" * len(whole), b"[]", b"\xff", *(whole[:cut] for cut in range(1, len(whole) - 2, 7))]:
    (tmp_path / "summary.json").write_bytes(damaged)
    assert summary.read(tmp_path) is None
    assert "summary.json is damaged" in capsys.readouterr().err
