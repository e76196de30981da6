"""The compiled training step: what it never holds, copies or gathers."""

import math
import re

import jax
import pytest
from steps import LONG, ereg

from benchmarks import programs, step_bytes
from entropy_attn import sharding
from entropy_attn.train_step import trace_train_step


def compiled_text(c):
  """The step of a config, compiled for its mesh."""
  mesh = sharding.make_mesh(c, jax.devices()[: c.mesh.data * c.mesh.fsdp * c.mesh.tensor])
  with jax.set_mesh(mesh):
    return trace_train_step(c, mesh).lower().compile().as_text()


def test_no_attention_matrix_exists_unless_the_reference_is_asked_for():
  assert programs.square_buffers(compiled_text(ereg(**LONG)), 260) == []
  assert programs.square_buffers(compiled_text(ereg(**LONG, model__attention="reference")), 260) != []


def test_bytes_of_the_loops_of_attention_are_told_apart():
  assert step_bytes.moved(compiled_text(ereg(**LONG)))[1] > 0
  assert step_bytes.moved(compiled_text(ereg(**LONG, model__attention="reference")))[1] == 0


def test_the_logits_of_the_whole_batch_never_exist():
  text = compiled_text(ereg(**LONG, model__vocab_size=37, train__batch_size=16, eval__batch_size=16))
  assert 0 < programs.most_tokens(text, 37) <= 16 * math.ceil(260 / 8)


def test_no_parameter_or_moment_is_copied_in_a_step():
  copies = r"= f32\[37,16\]\S* copy\("  # of the token embedding, the only array of its shape
  text = compiled_text(ereg(model__vocab_size=37, mesh__data=1))
  assert "f32[37,16]" in text and not re.search(copies, text)


@pytest.mark.parametrize(
  "data,fsdp,tensor",
  [(2, 2, 2), *(pytest.param(*mesh, marks=pytest.mark.slow) for mesh in ((1, 4, 2), (1, 1, 4), (8, 1, 1)))],
)
def test_a_mesh_gathers_nothing_in_attention(data, fsdp, tensor):
  axes = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
  assert programs.gathered_in_attention(compiled_text(ereg(**LONG | axes)), 260) == []


def test_without_the_shards_of_their_own_the_mesh_would_gather(monkeypatch):
  monkeypatch.setattr(sharding, "per_shard", lambda fn, in_axes, out_axes, *arrays: fn(*arrays))
  text = compiled_text(ereg(**LONG | {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}))
  assert programs.gathered_in_attention(text, 260) != []


def test_the_gradient_of_the_head_is_reduced_once_whatever_the_number_of_chunks():
  batch_size = {"train__batch_size": 32, "eval__batch_size": 32}  # four chunks on each device
  text = compiled_text(ereg(**LONG | {"mesh__data": 4, "model__vocab_size": 37} | batch_size))
  loop = [
    line for line in text.splitlines() if "cross_entropy" in line and "while/body" in line.split("cross_entropy")[1]
  ]
  assert any(" dot(" in line or "fusion" in line for line in loop)
  assert [line for line in loop if re.search(r"37,16\]|16,37\]", line) and "all-reduce" in line] == []


@pytest.mark.slow
def test_clipping_does_not_read_the_gradients_once_more():
  reductions = [compiled_text(ereg(mesh__data=1, optimizer__clip_norm=norm)).count(" reduce(") for norm in (0.0, 1.0)]
  assert reductions[0] == reductions[1] > 20
