"""A run's folder: its files are written whole or not at all, and what does not fit it is named."""

import json

from matplotlib.figure import Figure
import pytest

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.run import folder, summary


@pytest.fixture
def config():
  return config_lib.codeparrot("quick", "ereg")


def test_a_folder_holds_its_config_and_its_environment(tmp_path, config):
  folder.make(tmp_path / "a" / "run", config)
  assert config_lib.differences(folder.read_config(tmp_path / "a" / "run"), config) == []
  environment = json.loads((tmp_path / "a" / "run" / "environment.json").read_text())
  assert environment["packages"]["jax"] and environment["processes"] == 1 and environment["devices"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
  path = folder.write_json(tmp_path, "summary.json", {"status": "finished", "step": 1})
  before = path.read_bytes()
  folder.unfinished(path).symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left"):
    folder.write_json(tmp_path, "summary.json", {"status": "finished", "step": 2})
  assert path.read_bytes() == before
  with pytest.raises(TypeError):
    folder.write_json(tmp_path, "summary.json", {"status": object()})
  assert path.read_bytes() == before


def test_figures_are_written_under_their_names(tmp_path):
  paths = folder.write_figures(tmp_path, {"one": Figure(), "two": Figure()})
  assert paths == [tmp_path / "one.png", tmp_path / "two.png"]
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_folder_that_holds_no_run_or_a_broken_config_is_named(tmp_path, config):
  with pytest.raises(UserError, match=r"holds no run \(no config.json\)"):
    folder.read_config(tmp_path)
  folder.check_same_run(tmp_path, config)  # a new folder is anybody's
  (tmp_path / "config.json").write_text('{"model": ')
  for check in (folder.read_config, lambda workdir: folder.check_same_run(workdir, config)):
    with pytest.raises(UserError, match=r"config.json is not a run's config"):
      check(tmp_path)


def test_a_run_of_another_config_is_refused_but_for_what_alters_nothing(tmp_path, config):
  folder.make(tmp_path, config)
  config.train.log_every, config.mesh.fsdp = 3, 2
  folder.check_same_run(tmp_path, config)
  config.regularizer.gamma = 0.3
  with pytest.raises(UserError, match=r"another config \(regularizer.gamma: 0.2 → 0.3\)"):
    folder.check_same_run(tmp_path, config)


def test_a_summary_is_an_outcome_or_none(tmp_path):
  assert summary.read(tmp_path) is None
  summary.write(tmp_path, {"status": "evaluated"})
  assert summary.read(tmp_path) is None
  summary.write(tmp_path, summary.summarize({"parameters": 3}, {"status": "diverged", "loss": float("nan")}))
  assert summary.read(tmp_path) == {"parameters": 3, "status": "diverged", "loss": None}
  (tmp_path / "summary.json").write_text('{"status"')
  with pytest.raises(UserError, match=r"summary.json is no JSON .*delete it"):
    summary.read(tmp_path)
