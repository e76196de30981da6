"""The table of a model's parameters, and the trace of chosen steps."""

import jax
import jax.numpy as jnp
import pytest

from entropy_attn import config as config_lib
from entropy_attn import instruments, sharding
from entropy_attn.train_step import abstract_state


def test_the_table_names_every_parameter_once_however_many_layers_there_are():
  config = config_lib.codeparrot("T128", "ereg")
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  params = abstract_state(config, mesh).params
  text = instruments.parameters(params, mesh)
  leaves = jax.tree.leaves(params)
  assert len(text.splitlines()) == len(leaves) + 5
  assert text.splitlines()[-1].startswith(f"Total: {sum(leaf.size for leaf in leaves):,} -- ")
  assert "model/blocks/q/kernel" in text and "(12, 768, 768)" in text and "Sharding" not in text


def test_over_several_devices_the_table_says_how_each_lies_on_them():
  config = config_lib.codeparrot("quick", "ereg")
  mesh = jax.sharding.AbstractMesh((2, 2, 1), sharding.MESH_AXES)
  text = instruments.parameters(abstract_state(config, mesh).params, mesh)
  assert "Sharding" in text and "'fsdp'" in text


def run_steps(trace, count, fail_at=None):
  step = jax.jit(lambda x: x @ x / 100)
  x = jnp.ones((100, 100))
  with trace:
    for number in range(1, count + 1):
      with trace.step(number):
        x = step(x)
      if number == fail_at:
        raise KeyboardInterrupt


def traces(folder):
  return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_a_trace_holds_the_steps_asked_for_and_says_where_it_lies(tmp_path, capsys):
  run_steps(instruments.Trace((2, 3), tmp_path / "tensorboard"), 5)
  (path,) = traces(tmp_path / "tensorboard")
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  names = [(event.name, dict(event.stats)) for plane in planes for line in plane.lines for event in line.events]
  assert sorted(stats["step_num"] for name, stats in names if name == "train") == [2, 3]
  assert capsys.readouterr().err.startswith(f"traced step 2 to 3 into {tmp_path}/tensorboard/plugins/profile")


def test_a_run_that_stops_within_the_steps_ends_its_trace(tmp_path, capsys):
  with pytest.raises(KeyboardInterrupt):
    run_steps(instruments.Trace((2, 9), tmp_path), 5, fail_at=3)
  assert len(traces(tmp_path)) == 1
  assert "traced step 2 to the run's end" in capsys.readouterr().err
  run_steps(instruments.Trace((2, 9), tmp_path), 3)  # no other trace is open


def test_without_steps_or_beyond_them_nothing_is_traced(tmp_path):
  run_steps(instruments.Trace(None, tmp_path / "a"), 3)
  run_steps(instruments.Trace((7, 9), tmp_path / "b"), 3)
  assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys, monkeypatch):
  stop = instruments.profiler.stop

  def fails():
    stop()
    raise OSError("No space left on device")

  monkeypatch.setattr(instruments.profiler, "stop", fails)
  run_steps(instruments.Trace((2, 3), tmp_path), 5)
  assert "trace of step 2 to 3 could not be written: No space left" in capsys.readouterr().err
