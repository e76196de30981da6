"""Whole runs that learn from another run while norm and activation fade: resumed, evaluated, folded; and refusals."""

import dataclasses
import json
import shutil

from ml_collections import ConfigDict
import numpy as np
import pytest
from tiny_runs import STEPS, arrays, assert_same, command, finish, interrupted, lines, popen, run

from entropy_attn import config as config_lib
from entropy_attn import curriculum, origin, teacher
from entropy_attn.data.pipeline import Dataset
from entropy_attn.errors import UserError
from entropy_attn.model import GPT
from entropy_attn.run import folder, pretrained, text

TEACHER = {
  "model.norm": "layernorm", "model.activation": "gelu", "model.ffn": "mlp", "model.residual_scaling": "false",
  "model.temperature": "none", "regularizer.weight": 0, "model.d_model": 32, "train.seed": 1,
}  # fmt: skip
STUDENT = {"model.ffn": "mlp", "regularizer.weight": 0, "distill.entropy_weight": 0.1, "curriculum.until": 0.9}
FADED = 22  # steps: 0.9 of 24


pytestmark = pytest.mark.slow  # whole runs of a teacher and its students


@pytest.fixture(scope="module")
def taught(corpus, tmp_path_factory):
  """(the teacher's folder, the student's, its overrides, what it said): both uninterrupted."""
  folders = tmp_path_factory.mktemp("runs")
  run(folders / "teacher", corpus | TEACHER)
  overrides = corpus | STUDENT | {"distill.teacher": folders / "teacher"}
  _, err = run(folders / "student", overrides)
  return folders / "teacher", folders / "student", overrides, err


def test_a_run_records_what_it_learnt_from_its_teacher_and_its_fade(taught):
  of_teacher, workdir, _, err = taught
  assert f"distilled from {of_teacher}, layernorm and gelu faded out by 90% of the steps" in err
  for record in lines(workdir):
    assert record["fade"] == pytest.approx(min((record["step"] - 1) / FADED, 1))
    parts = 0.5 * record["cross_entropy"] + 0.5 * 4 * record["distillation"] + 0.1 * record["entropy_gap"]
    assert record["loss"] == pytest.approx(parts, rel=1e-5)
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["architecture"] == "SM(t)+ScFFN"
  assert lines(workdir)[-1]["distillation"] < lines(workdir)[0]["distillation"]


def test_a_stopped_and_resumed_one_equals_it_bit_for_bit(taught, tmp_path):
  _, whole, overrides, _ = taught
  workdir, step = tmp_path / "stopped", 13  # amid the fade
  arguments = interrupted(command(workdir, overrides), step)
  assert f"saved step {step}" in finish(popen(arguments), expect=2)[1]
  _, err = run(workdir, overrides)
  assert f"resumed from step {step}" in err
  assert_same(workdir, whole)
  (found,) = arrays(STEPS, workdir)
  assert not any("eacher" in name for name in found)


def test_an_evaluation_sees_the_fade_of_its_checkpoint(taught, tmp_path):
  _, workdir, overrides, _ = taught
  run(workdir, overrides, "--mode=eval", f"--json={tmp_path / 'eval.json'}")
  found = json.loads((tmp_path / "eval.json").read_text())
  assert found["loss"] == json.loads((workdir / "summary.json").read_text())["loss"]


def test_a_finished_run_folds_and_one_amid_the_fade_is_refused(taught):
  _, workdir, _, _ = taught
  model = pretrained.load(workdir)
  tokens_BxT = model.sequences(2, 16)
  folded, plain = curriculum.fold(model.variables, model.config.model)
  plain.dtype = model.config.model.dtype = "float32"
  logits = GPT(model.config).apply(model.variables, tokens_BxT)[0]
  np.testing.assert_allclose(GPT(plain).apply(folded, tokens_BxT)[0], logits, atol=1e-5)
  amid = pretrained.load(workdir, step=16)
  with pytest.raises(UserError, match=r"\(fade 0.727 of 1\)"):
    curriculum.fold(amid.variables, amid.config.model)


def student_of(workdir, of_teacher, **overrides):
  c = folder.read_config(workdir)
  c.distill.teacher = str(of_teacher)
  for name, value in overrides.items():
    group, field = name.split("__")
    c[group][field] = value
  config_lib.validate(c)
  return c


def rewritten(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_teacher_that_is_missing_or_does_not_fit_is_refused_in_one_line(taught, tmp_path):
  of_teacher, workdir, _, _ = taught
  assert teacher.find(student_of(workdir, of_teacher)).folder == of_teacher
  shallower = {"model__num_layers": 1}
  assert teacher.find(student_of(workdir, of_teacher, distill__entropy_weight=0.0, **shallower)).folder == of_teacher
  unfinished, diverged = (shutil.copytree(of_teacher, tmp_path / name) for name in ("unfinished", "diverged"))
  (unfinished / "summary.json").unlink()
  rewritten(diverged / "summary.json", status="diverged", step=7)
  refused = [
    (tmp_path / "none", {}, "holds no run"),
    (unfinished, {}, "has not finished: name a run that was trained to its end"),
    (diverged, {}, "diverged at step 7"),
    (of_teacher, {"model__vocab_size": 400}, "has model.vocab_size=300, not 400"),
    (of_teacher, {"model__context_length": 32, "model__max_positions": 32}, "has 16 positions, and"),
    (of_teacher, shallower, "has 2 × 2 layers × heads, and the model 1 × 2"),
  ]
  for path, overrides, message in refused:
    with pytest.raises(UserError) as found:
      teacher.find(student_of(workdir, path, **overrides))
    assert message in str(found.value) and "distill." in str(found.value) and "\n" not in str(found.value)


def test_a_teacher_of_another_tokenizer_is_refused(taught):
  of_teacher = taught[0]
  found = origin.find("distill.teacher", str(of_teacher))
  kept = text.read_tokenizer(of_teacher)
  dataset = Dataset(train=(), valid=(), vocab_size=300, shuffle=True, description="", tokenizer=kept)
  origin.check_text(found, dataset)
  origin.check_text(found, dataclasses.replace(dataset, tokenizer=None))  # languini: its tokens are its own
  other = dataclasses.replace(dataset, tokenizer=dataclasses.replace(kept, fingerprint="another"))
  with pytest.raises(UserError, match=f"another tokenizer than the text, .*--config.data.tokenizer={of_teacher}"):
    origin.check_text(found, other)


def test_it_is_refused_before_training(taught, tmp_path):
  _, _, overrides, _ = taught
  _, err = run(tmp_path / "run", overrides | {"distill.teacher": tmp_path / "none"}, expect=2)
  last = err.strip().splitlines()[-1]
  assert last.startswith("error: distill.teacher=") and "holds no run" in last
  assert not (tmp_path / "run").exists()
  assert isinstance(folder.read_config(overrides["distill.teacher"]), ConfigDict)
