"""Whole runs that start from another and learn from it: what both were is recorded, and a resumed run is the same."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import STEPS, assert_same, command, finish, interrupted, lines, popen, run

from entropy_attn import curriculum, origin
from entropy_attn.model import GPT
from entropy_attn.run import folder, pretrained, text

SOURCE = {
  "model.norm": "layernorm", "model.activation": "gelu", "model.ffn": "mlp", "model.residual_scaling": "false",
  "model.temperature": "none", "regularizer.weight": 0, "train.seed": 1,
}  # fmt: skip
CONFIG = "configs/finetune_gpt2.py:quick"

pytestmark = pytest.mark.slow  # whole runs of a source and of what starts from it


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory):
  """(the source's folder, the run's, its overrides, what it said): both uninterrupted."""
  folders = tmp_path_factory.mktemp("runs")
  begin = folders / "source"
  run(begin, corpus | SOURCE)
  overrides = corpus | {"init.source": begin, "distill.teacher": begin}
  _, err = run(folders / "tuned", overrides, config=CONFIG)
  return begin, folders / "tuned", overrides, err


def test_it_begins_as_its_source_and_ends_as_the_reduced_model(tuned):
  begin, workdir, _, err = tuned
  new = "alpha, beta, down/bias, o/bias, temperature, up/bias, v/bias"
  assert f"init.source={begin}: 16 parameters copied; new: {new}\n" in err and "another function" not in err
  assert "started from" in err and "layernorm and gelu faded out by 50% of the steps" in err
  first, last = lines(workdir)[0], lines(workdir)[-1]
  assert first["distillation"] == pytest.approx(0, abs=1e-4)  # the student is its teacher
  assert last["fade"] == 1 and last["distillation"] > 1e-4
  model = pretrained.load(workdir)
  tokens_BxT = model.sequences(2, 16)
  folded, plain = curriculum.fold(model.variables, model.config.model)
  assert (plain.norm, plain.activation, plain.ffn) == ("none", "identity", "mlp")
  logits = GPT(model.config).apply(model.variables, tokens_BxT)[0]
  np.testing.assert_allclose(GPT(plain).apply(folded, tokens_BxT)[0], logits, atol=1e-5)
  assert "private_inference" in json.loads((workdir / "summary.json").read_text())


def test_it_says_what_it_came_from(tuned):
  begin, workdir, _, _ = tuned
  models = json.loads((workdir / "environment.json").read_text())["sources"]
  weights = origin.fingerprint(pretrained.load(begin).variables)
  of_run = {"source": str(begin), "architecture": "SM+LN+G", "step": STEPS, "git_commit": folder.commit_of(begin)}
  assert models == {name: of_run | {"weights": weights} for name in ("init.source", "distill.teacher")}
  assert text.read_tokenizer(workdir).fingerprint == text.read_tokenizer(begin).fingerprint


def test_a_stopped_and_resumed_one_equals_it_bit_for_bit(tuned, tmp_path):
  _, whole, overrides, _ = tuned
  workdir, step = tmp_path / "stopped", 7  # amid the fade
  arguments = interrupted(command(workdir, overrides, config=CONFIG), step)
  assert f"saved step {step}" in finish(popen(arguments), expect=2)[1]
  _, err = run(workdir, overrides, config=CONFIG)
  assert f"resumed from step {step}" in err and "copied" not in err
  assert_same(workdir, whole)


def test_another_teacher_under_the_same_name_is_refused_and_a_source_is_not_read_again(corpus, tuned, tmp_path):
  begin, _, _, _ = tuned
  of_run, teacher = (shutil.copytree(begin, tmp_path / name) for name in ("source", "teacher"))
  overrides = corpus | {"init.source": of_run, "distill.teacher": teacher}
  workdir = tmp_path / "run"
  arguments = interrupted(command(workdir, overrides, config=CONFIG), 3)
  finish(popen(arguments), expect=2)
  shutil.rmtree(of_run)
  shutil.rmtree(teacher)
  run(teacher, corpus | SOURCE | {"train.seed": 2})
  _, err = run(workdir, overrides, expect=2, config=CONFIG)
  last = err.strip().splitlines()[-1]
  assert last.startswith(f"error: distill.teacher={teacher} is not the model that the run in {workdir} read until now")
  shutil.rmtree(teacher)
  shutil.copytree(begin, teacher)
  _, err = run(workdir, overrides, config=CONFIG)
  assert "resumed from step 3" in err


def test_a_source_that_does_not_fit_is_refused_before_anything_is_made(tuned, tmp_path):
  begin, _, overrides, _ = tuned
  for changes, message in (
    ({"init.source": tmp_path / "none"}, f"init.source={tmp_path / 'none'}: "),
    ({"model.d_model": 32}, f"init.source={begin} does not fit the model: model.d_model is 16 there and 32 here: set "),
  ):
    _, err = run(tmp_path / "run", overrides | changes, expect=2, config=CONFIG)
    assert err.strip().splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()
