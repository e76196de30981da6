"""What a run's text was: kept in its folder, refused where it changed, enough to check fixed point on without it."""

import shutil

import numpy as np
import pytest

from entropy_attn import config as config_lib
from entropy_attn.data import pipeline
from entropy_attn.errors import UserError
from entropy_attn.run import folder, pretrained, text


@pytest.fixture
def config(corpus, tmp_path):
  c = config_lib.codeparrot("quick")
  c.model.update(context_length=32, vocab_size=300)
  folder_ = shutil.copytree(corpus["data.path"], tmp_path / "text")
  c.data.update(name="text_files", path=str(folder_), data_dir=str(tmp_path / "built"))
  return c


@pytest.fixture
def run(config, tmp_path):
  """A run's folder that knows its text."""
  folder.record(_made(tmp_path / "run"), config)
  text.record(tmp_path / "run", pipeline.prepare(config), 0, accept=False)
  return tmp_path / "run"


def _made(path):
  path.mkdir()
  return path


def model_of(run, config):
  return pretrained.Pretrained(config, {}, run, 3)


def test_the_same_text_is_the_same_wherever_it_lies_and_whenever_it_was_written(run, config, tmp_path):
  (tmp_path / "text").rename(tmp_path / "moved")
  for path in (tmp_path / "moved").iterdir():
    path.touch()
  config.data.path = str(tmp_path / "moved")
  before = {path.name: path.read_bytes() for path in run.iterdir()}
  assert text.record(run, pipeline.prepare(config, text.read_tokenizer(run)), 5, accept=False) == []
  assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_another_text_is_refused_by_name_or_accepted_and_kept_in_mind(run, config, tmp_path):
  first = text.read_identity(run)
  for name in ("added_1.py", "added_2.py", "added_3.py"):
    shutil.copy(next((tmp_path / "text").glob("c*.py")), tmp_path / "text" / name)
    (tmp_path / "text" / name).write_text(f"{name} = 1\n" * 200)
  dataset = pipeline.prepare(config, text.read_tokenizer(run))
  assert dataset.tokenizer.fingerprint == first["tokenizer"]
  with pytest.raises(UserError, match=r"is not what the run in .* \(train: .*added_1.py.*--accept_changed_text"):
    text.record(run, dataset, 7, accept=False)
  assert text.read_identity(run) == first
  changed = text.record(run, dataset, 7, accept=True)
  assert any("added_1.py" in line for line in changed)
  assert text.read_identity(run)["earlier"][0]["until_step"] == 7
  assert text.record(run, dataset, 9, accept=False) == []  # from then on this is its text


def test_what_was_trained_on_is_counted_where_it_is_evaluated(run, config):
  config.data.valid_fraction = 0.5
  dataset = pipeline.prepare(config, text.read_tokenizer(run))
  trained = set(text.read_identity(run)["train"]["files"])
  overlap = len(trained & set(dataset.identity["valid"]["files"]))
  assert overlap > 0
  assert text.compare(run, dataset)[-1] == f"{overlap} validation files were trained on"


def test_a_damaged_identity_is_named(run):
  (run / "dataset.json").write_text('{"train"')
  with pytest.raises(UserError, match=r"dataset.json cannot be read"):
    text.read_identity(run)


def test_sequences_and_tokenizer_need_no_text(run, config, tmp_path, capsys):
  dataset = pipeline.prepare(config)
  expected = {split: getattr(dataset, split).batch(range(5))["inputs"] for split in ("train", "valid")}
  shutil.rmtree(tmp_path / "text")
  shutil.rmtree(tmp_path / "built")
  model = model_of(run, config)
  for split, tokens in expected.items():
    np.testing.assert_array_equal(model.sequences(5, 20, split=split), tokens[:, :20])
  (ids,) = model.tokenizer.encode_batch(["def f(x):"])
  assert model.tokenizer.decode(ids) == "def f(x):"
  with pytest.raises(UserError, match=r"checked on 1000 sequences of the run's text, and .* does not hold them"):
    model.sequences(1000, 20, split="train")
  (run / "sample.npz").write_bytes((run / "sample.npz").read_bytes()[:50])  # damaged: as if it were not there
  with pytest.raises(UserError, match=r"checked on 5 sequences"):
    model.sequences(5, 20)
  assert capsys.readouterr().out == ""


def test_a_run_of_an_earlier_version_takes_its_sample_once_there_is_text(run, config, tmp_path, capsys):
  for name in ("dataset.json", "sample.npz", "tokenizer.json"):
    (run / name).unlink()
  model = model_of(run, config)
  sequences = model.sequences(4, 32)
  assert "does not hold its tokenizer, nor what its text was" in capsys.readouterr().err
  shutil.rmtree(tmp_path / "text")
  np.testing.assert_array_equal(model.sequences(4, 32), sequences)


def test_more_than_the_sample_comes_from_the_text_with_a_note_where_it_changed(run, config, tmp_path, capsys):
  model = model_of(run, config)
  count = text.SAMPLED + 3
  whole = model.sequences(count, 32, split="train")
  assert whole.shape == (count, 32) and capsys.readouterr().err == ""
  np.testing.assert_array_equal(whole[: text.SAMPLED], text.read_sample(run, "train"))
  for path in (tmp_path / "text").glob("a*.py"):
    path.unlink()
  model.sequences(count, 32, split="train")
  assert "note: the text is not what the run was trained on" in capsys.readouterr().err
