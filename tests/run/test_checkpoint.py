"""Checkpoints: any path holds them, and a fault of the reader is not taken for damage."""

import errno
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn import config as config_lib
from entropy_attn import sharding
from entropy_attn.errors import UserError
from entropy_attn.run import checkpoint
from entropy_attn.train_step import abstract_state

STATE = {"a": jnp.arange(5), "b": {"c": jnp.ones((2, 3))}}
ODD = [
  "a#b",
  "a?b=c&d",
  "a%20b",
  "a b",
  "ü-é",
  "[x]",
  "{y}",
  "*",
  "@2",
  "c:",
  "gs:",
  "it's",
  'a"b',
  "a\\b",
  "a\nb",
  "~x",
  "-x",
]


def save(workdir, steps):
  checkpoints = checkpoint.Checkpoints(workdir, config_lib.codeparrot("quick"))
  for step in steps:
    checkpoints.save(step, STATE, {"next": step})
  checkpoints.close()


def test_a_state_of_every_kind_of_parameter_and_of_muon_is_restored(tmp_path):
  config = config_lib.codeparrot("quick", "ereg")
  config.model.update(num_layers=3, d_model=16, vocab_size=32, context_length=8, max_positions=8, ffns_removed=1)
  config.model.update(reparam="sigma", reparam_targets="qkvo+ffn", value_residual="fixed")
  config.optimizer.name, config.regularizer.strengths = "muon", "per_head"
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  shapes = abstract_state(config, mesh)
  numbers = itertools.count(1)
  fill = lambda x: jax.device_put(jnp.full(x.shape, next(numbers) % 7, x.dtype), x.sharding)
  state = jax.tree.map(fill, shapes)
  checkpoints = checkpoint.Checkpoints(tmp_path, config)
  checkpoints.save(2, state, {"next": 2})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path, config)
  restored, _ = checkpoints.restore_latest(shapes)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  variables, step = checkpoint.restore_variables(tmp_path, shapes, None)
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, variables, state.variables)
  assert {"blocks", "blocks_without_ffn"} <= set(variables["params"]) & set(variables["spectral"])


def restore(workdir):
  checkpoints = checkpoint.Checkpoints(workdir, config_lib.codeparrot("quick"))
  try:
    return checkpoints.restore_latest(STATE)
  finally:
    checkpoints.close()


def damage(workdir, step):
  for path in (workdir / "checkpoints" / str(step) / "state").rglob("d/*"):
    path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize("name", ODD)
def test_every_path_holds_checkpoints(tmp_path, name):
  workdir = tmp_path / name / "run"
  workdir.mkdir(parents=True)
  save(workdir, [3])
  state, position = restore(workdir)
  assert position == {"next": 3}
  np.testing.assert_array_equal(state["b"]["c"], STATE["b"]["c"])
  assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints"]


def test_damage_is_moved_aside_only_where_an_older_one_can_be_read(tmp_path, capsys):
  assert restore(tmp_path) is None
  save(tmp_path, [3, 6])
  damage(tmp_path, 6)
  assert restore(tmp_path)[1] == {"next": 3}
  assert "checkpoint 6 cannot be read" in capsys.readouterr().err
  assert (tmp_path / "checkpoints_unreadable" / "6").is_dir()
  save(tmp_path, [6])
  damage(tmp_path, 6)
  assert restore(tmp_path)[1] == {"next": 3}
  assert len(list((tmp_path / "checkpoints_unreadable").iterdir())) == 2  # nothing is thrown away

  damage(tmp_path, 3)
  with pytest.raises(UserError, match=r"none of the 1 checkpoints .* can be read \(step 3: .*nothing was changed"):
    restore(tmp_path)
  assert (tmp_path / "checkpoints" / "3").is_dir()
  (tmp_path / "checkpoints" / "3").rename(tmp_path / "gone")
  with pytest.raises(UserError, match="were unreadable and lie in .*checkpoints_unreadable"):
    restore(tmp_path)


def test_a_checkpoint_that_has_no_room_is_refused_before_it_is_begun(tmp_path, monkeypatch):
  save(tmp_path, [3])
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=40))  # STATE is 44 bytes
  with pytest.raises(UserError, match=r"no space left for a checkpoint .* what was saved before is intact"):
    save(tmp_path, [6])
  monkeypatch.undo()
  assert restore(tmp_path)[1] == {"next": 3}


@pytest.mark.parametrize(
  "fault",
  [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EMFILE, "Too many open files"), MemoryError()],
)
def test_a_fault_of_the_machine_is_no_damage(tmp_path, monkeypatch, fault):
  save(tmp_path, [3, 6])

  def read(folder):
    if folder.parent.name == "6":
      raise ValueError("cannot be opened") from fault

  monkeypatch.setattr(checkpoint, "_read_through", read)
  with pytest.raises(UserError, match="checkpoint 6 .*cannot be read now .*nothing was changed"):
    restore(tmp_path)
  assert not (tmp_path / "checkpoints_unreadable").exists()
  monkeypatch.undo()
  assert restore(tmp_path)[1] == {"next": 6}
