"""Whole runs of the command, on a tiny model and a small corpus: what they leave, resume, refuse and say."""

import json
import os
import shutil
import subprocess
import sys

from command_line import ROOT
from events import shown
import numpy as np
import pytest
from tiny_runs import STEPS, arrays, assert_same, command, finish, interrupted, lines, popen, run
from trees import assert_equal

from entropy_attn import files


def copy_of(workdir, tmp_path):
  return shutil.copytree(workdir, tmp_path / "copy")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
  """(folder, standard output, standard error) of one uninterrupted run."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  return workdir, *run(workdir, corpus)


def test_a_run_leaves_its_figures_config_and_versions(finished, corpus):
  workdir, out, err = finished
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["status"] == "finished"
  assert summary["architecture"] == "EReg(SM(t)+ScFuFFN)"
  assert summary["perplexity"] == pytest.approx(np.exp(summary["loss"]))
  assert summary["tokens"] == 3 * 8 * 15  # three batches of eight sequences; the last position predicts nothing
  assert np.shape(summary["entropy_LxH"]) == (2, 2)
  assert sum(summary["head_shares"]) == pytest.approx(1)
  assert summary["effective_regularizer_weight"] == pytest.approx(1e-5 * 128)
  assert "perplexity" in out
  assert "compiling the training step" in err
  assert "effective weight 0.00128" in err
  environment = json.loads((workdir / "environment.json").read_text())
  assert environment["packages"]["jax"]
  assert json.loads((workdir / "config.json").read_text())["data"]["path"] == str(corpus["data.path"])
  for name in ("entropy_heatmap.png", "entropy_layers.png"):
    assert (workdir / name).read_bytes().startswith(b"\x89PNG")


def test_every_step_is_recorded_with_every_term_of_the_loss(finished):
  workdir, _, _ = finished
  records = lines(workdir)
  assert [record["step"] for record in records] == list(range(1, STEPS + 1))
  assert [record["step"] for record in lines(workdir, "eval")] == [10, 20, 24]
  for record in records:
    weighted = record["cross_entropy"] + 1e-5 * 128 * record["penalty"]
    assert record["loss"] == pytest.approx(weighted, rel=1e-5)
    for name in ("entropy_LxH", "thresholds_LxH", "temperature_LxH"):
      assert np.shape(record[name]) == (2, 2)
    assert {"grad_norm", "learning_rate", "tokens_per_second", "head_shares", "alpha_L", "beta_L"} <= record.keys()
  assert records[-1]["loss"] < records[0]["loss"]


def test_tensorboard_holds_the_same_figures(finished):
  workdir, _, _ = finished
  scalars = shown(workdir)
  for record in lines(workdir):
    assert scalars["train/loss", record["step"]] == pytest.approx(record["loss"], rel=1e-6)
    assert scalars["heads/L01H00", record["step"]] == pytest.approx(record["entropy_LxH"][1][0], rel=1e-5)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished, corpus, tmp_path):
  number, step = "SIGTERM", 20  # an evaluation follows that step
  whole, _, _ = finished
  workdir = tmp_path / "stopped"
  arguments = interrupted(command(workdir, corpus), step, number)
  err = finish(popen(arguments), expect=2)[1]
  assert f"stopped by {number}: saved step {step}" in err and "the same command resumes" in err
  stopped_at = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert stopped_at == step

  _, err = run(workdir, corpus)
  assert f"resumed from step {stopped_at}" in err
  assert_same(workdir, whole)


def test_a_finished_run_is_left_as_it_is(finished, corpus, tmp_path):
  workdir = copy_of(finished[0], tmp_path)
  before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  out, err = run(workdir, corpus | {"eval.batches": 1})
  assert "is finished" in err and "(asked for now: eval.batches: 3 → 1)" in err
  assert out == finished[1]
  assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_folder_refuses_another_config_and_names_the_fields(finished, corpus):
  workdir, _, _ = finished
  _, err = run(workdir, corpus | {"model.d_model": 32, "train.seed": 5}, expect=2)
  assert "another config (model.d_model: 16 → 32; train.seed: 0 → 5)" in err
  assert err.count("\n") == 1


def truncate(step_folder):
  for path in (step_folder / "state").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(finished, corpus, tmp_path):
  workdir = copy_of(finished[0], tmp_path)
  (workdir / "summary.json").unlink()
  truncate(workdir / "checkpoints" / "24")
  _, err = run(workdir, corpus)
  assert "checkpoint 24 cannot be read" in err
  assert "resumed from step 16" in err
  assert (workdir / "checkpoints_unreadable" / "24").is_dir()
  expected, found = arrays(STEPS, finished[0], workdir)
  assert_equal(found, expected)

  assert [record["step"] for record in lines(workdir, "eval")] == [10, 20, 24]
  (workdir / "summary.json").unlink()
  for step in (16, 24):
    truncate(workdir / "checkpoints" / str(step))
  _, err = run(workdir, corpus, expect=2)
  assert "none of the 2 checkpoints" in err
  assert (workdir / "checkpoints" / "16").is_dir()


def test_evaluation_of_any_checkpoint(finished, corpus, tmp_path):
  workdir, _, _ = finished
  target = tmp_path / "figures.json"
  run(workdir, corpus, "--mode=eval", f"--json={target}")
  result, summary = json.loads(target.read_text()), json.loads((workdir / "summary.json").read_text())
  assert result["step"] == STEPS
  assert result["loss"] == summary["loss"]
  assert result["entropy_LxH"] == summary["entropy_LxH"]
  run(workdir, corpus | {"eval.batches": 0, "model.context_length": 8}, "--mode=eval", "--step=16", f"--json={target}")
  result = json.loads(target.read_text())
  assert (result["step"], result["context_length"]) == (16, 8)
  assert result["tokens"] > 3 * 8 * 15


def test_other_text_is_evaluated_with_the_runs_tokenizer_and_named(finished, corpus, tmp_path):
  """Another split would train another tokenizer, for whose ids the model has never been trained."""
  workdir, target = finished[0], tmp_path / "figures.json"
  _, err = run(workdir, corpus | {"data.valid_fraction": 0.5, "eval.batches": 0}, "--mode=eval", f"--json={target}")
  summary = json.loads((workdir / "summary.json").read_text())
  assert json.loads(target.read_text())["loss"] == pytest.approx(summary["loss"], rel=0.05)
  assert "note: this is not the run's own evaluation" in err
  for part in ("data.valid_fraction: 0.05 → 0.5", "eval.batches: 3 → 0", "valid: ", "validation files were trained on"):
    assert part in err


@pytest.mark.slow
def test_a_run_goes_on_only_with_its_text(corpus, tmp_path):
  texts = shutil.copytree(corpus["data.path"], tmp_path / "text")
  workdir = texts / "runs" / "a#[b]"  # below the text, which it is no part of
  fields = corpus | {"data.path": texts, "data.data_dir": texts / "built", "train.checkpoint_every": 2}
  arguments = interrupted(command(workdir, fields), 3, "SIGHUP")
  assert "stopped by SIGHUP: saved step 3" in finish(popen(arguments), expect=2)[1]
  (texts / "added.py").write_text((texts / "bisect.py").read_text() * 3)
  _, err = run(workdir, fields, expect=2)
  assert "the text is not what the run" in err and "added.py" in err and "--accept_changed_text" in err
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "3"]
  _, err = run(workdir, fields, "--accept_changed_text")
  assert "note: from step 3 on another text, as accepted" in err and "added.py" in err
  assert [record["step"] for record in lines(workdir)] == list(range(1, STEPS + 1))
  identity = json.loads((workdir / "dataset.json").read_text())
  assert identity["earlier"][0]["until_step"] == 3
  assert any(identity["earlier"][0][split]["digest"] != identity[split]["digest"] for split in ("train", "valid"))


def test_records_without_a_checkpoint_are_kept_and_told(finished, corpus, tmp_path):
  workdir = copy_of(finished[0], tmp_path)
  shutil.rmtree(workdir / "checkpoints")
  (workdir / "summary.json").write_text('{"status": "finis')
  before = (workdir / "metrics.jsonl").read_bytes()
  _, err = run(workdir, corpus | {"eval.every": 0})
  assert "summary.json is damaged" in err and "no checkpoint was saved" in err
  assert before in [path.read_bytes() for path in workdir.iterdir() if path.name.startswith("metrics")]
  assert [record["step"] for record in lines(workdir)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
  "overrides,flags,message",
  [
    ({"model.num_heads": 4}, [], "another architecture (model.num_heads: 2 → 4)"),
    ({"model.context_length": 32, "model.max_positions": 32}, [], "exceeds the 16 positions of the checkpoint"),
    ({}, ["--step=9"], "no checkpoint of step 9"),
  ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(finished, corpus, overrides, flags, message):
  workdir, _, _ = finished
  _, err = run(workdir, corpus | overrides, "--mode=eval", *flags, expect=2)
  assert message in err


def test_evaluation_without_a_run_is_refused(corpus, tmp_path):
  _, err = run(tmp_path / "nothing", corpus, "--mode=eval", expect=2)
  assert "holds no run" in err


DIVERGING = {"optimizer.learning_rate": 1e18, "optimizer.clip_norm": 0.0, "optimizer.warmup_fraction": 0.5}


@pytest.mark.parametrize("on_nonfinite,code", [("stop", 1), pytest.param("record", 0, marks=pytest.mark.slow)])
def test_divergence_stops_names_the_layer_and_keeps_the_state_before(corpus, tmp_path, on_nonfinite, code):
  workdir = tmp_path / "diverging"
  overrides = corpus | DIVERGING | {"train.on_nonfinite": on_nonfinite}
  out, err = run(workdir, overrides, expect=code, config="configs/codeparrot_sm.py:quick")
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["status"] == "diverged"
  assert summary["perplexity"] is None
  step = summary["divergence"]["step"]
  assert summary["step"] == step == lines(workdir)[-1]["step"] < STEPS
  assert summary["divergence"]["text"] in (err if code else out)
  assert "not finite first in" in summary["divergence"]["text"]
  (kept,) = arrays(step - 1, workdir)
  assert all(np.all(np.isfinite(value)) for value in kept.values())
  assert kept["['step']"] == step - 1


@pytest.mark.parametrize(
  "overrides,message",
  [
    ({"model.num_heads": 3}, "model.d_model=16 is not divisible by model.num_heads=3"),
    ({"model.norm": "layernrm"}, "(did you mean 'layernorm'?)"),
    ({"data.path": "no/such/folder"}, "no/such/folder"),
    ({"mesh.tensor": 2}, "does not fit 1 device"),
  ],
)
def test_bad_input_ends_in_one_line(corpus, tmp_path, overrides, message):
  _, err = run(tmp_path / "bad", corpus | overrides, expect=2)
  last = err.strip().splitlines()[-1]
  assert last.startswith("error: ")
  assert message in last


@pytest.mark.slow
def test_a_fault_of_the_data_loses_no_step(tmp_path):
  """A damaged book, met at some step: what was trained before it is saved, and the run goes on once it is mended."""
  books = tmp_path / "languini" / "books_300"
  books.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for split, count in (("train", 8), ("test_iid", 2)):
    rows = [(f"{split}{i}", 16 * STEPS + 1) for i in range(count)]
    np.save(tmp_path / "languini" / f"file_list_{split}.npy", np.array(rows))
    for name, length in rows:
      np.save(books / f"{name}.npy", rng.integers(3, 300, length).astype(np.uint16))
  damaged = np.load(books / "train5.npy")
  good = damaged.copy()
  damaged[16 * 9 + 4] = 999
  np.save(books / "train5.npy", damaged)
  data = {"data.name": "languini", "data.path": tmp_path / "languini"}
  _, err = run(tmp_path / "run", data, expect=2)
  assert "a book holds the token 999, beyond model.vocab_size=300" in err
  assert [record["step"] for record in lines(tmp_path / "run")] == list(range(1, 10))
  np.save(books / "train5.npy", good)
  _, err = run(tmp_path / "run", data)
  assert "resumed from step 9" in err
  assert [record["step"] for record in lines(tmp_path / "run")] == list(range(1, STEPS + 1))

  # Languini's protocol: strided windows predict every token but the first once, with more context.
  target = tmp_path / "eval.json"
  predictions = 2 * (16 * STEPS + 2) - 1  # two books, each followed by <D>
  for last_n in (0, 4):
    run(tmp_path / "run", data | {"eval.batches": 0, "eval.last_n": last_n}, "--mode=eval", f"--json={target}")
    assert json.loads(target.read_text())["tokens"] == predictions


def test_a_full_disk_ends_in_one_line(corpus, tmp_path):
  (tmp_path / "run").mkdir()
  files.unfinished(tmp_path / "run" / "environment.json").symlink_to("/dev/full")
  _, err = run(tmp_path / "run", corpus, expect=2)
  assert err.strip().splitlines()[-1].startswith("error: no space left")


@pytest.mark.slow
def test_without_a_workdir_the_run_lands_under_its_configs_name(corpus, tmp_path):
  argument, name = ":qk+ffn,quick", "codeparrot_snorm_qk+ffn_quick"
  arguments = command("", corpus | {"train.steps": 2}, config=f"{ROOT}/configs/codeparrot_snorm.py{argument}")
  arguments.remove("--workdir=")
  env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  arguments += ["--config.train.accumulation=1", "--config.data.tokenizer="]
  subprocess.run(arguments, cwd=tmp_path, env=env, check=True, capture_output=True)
  assert (tmp_path / "runs" / name / "summary.json").is_file()


def test_the_missing_data_of_a_paper_config_is_named_with_what_to_do(tmp_path):
  bare = [sys.executable, "-m", "entropy_attn.main", f"--config={ROOT}/configs/languini_scfuffn.py"]
  env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  done = subprocess.run(bare, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  for part in ("data/languini/books_16384 is missing", "--config.data.path=FOLDER", "--config.data.name=python_source"):
    assert part in last
