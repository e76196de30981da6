"""Datasets are built once, whole or not at all, and read as TFDS reads them."""

import concurrent.futures
import errno
import gc
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from entropy_attn.data import builder, pipeline
from entropy_attn.errors import UserError
from tests.data.small_configs import of_files

_PREPARE = r"""
import os
import sys
from tests.data.small_configs import make_config
from entropy_attn.data import builder, pipeline
config = make_config(sys.argv[1], data__name="text_files", data__path=sys.argv[2])
if sys.argv[3] == "hang":
  generate = builder.PackedText._generate_examples
  def hang(self, split):
    for i, example in enumerate(generate(self, split)):
      if i == 100:
        os.write(1, b"half\n")  # past the redirection that keeps TFDS quiet
        sys.stdin.read()
      yield example
  builder.PackedText._generate_examples = hang
dataset = pipeline.prepare(config)
print(len(dataset.train), "tensorflow" in sys.modules)
"""
_ROOT = pathlib.Path(__file__).parents[2]


def _start(data_dir, folder, mode):
  return subprocess.Popen(
      [sys.executable, "-c", _PREPARE, str(data_dir), str(folder), mode],
      cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def _build_count(monkeypatch):
  calls = []
  generate = builder.PackedText._generate_splits

  def counted(self, *args):
    calls.append(self.builder_config.name)
    return generate(self, *args)

  monkeypatch.setattr(builder.PackedText, "_generate_splits", counted)
  return calls


def test_built_once_and_again_for_whatever_changes_the_records(tmp_path, folder, monkeypatch):
  calls = _build_count(monkeypatch)
  first = pipeline.prepare(of_files(tmp_path, folder))
  again = pipeline.prepare(of_files(tmp_path, folder, train__seed=7, train__batch_size=4))
  assert len(calls) == 1
  assert again.description == first.description
  for changed in (
      {"model__context_length": 16}, {"model__vocab_size": 301}, {"data__packing": "concat"},
      {"data__valid_fraction": 0.5},
  ):  # fmt: skip
    pipeline.prepare(of_files(tmp_path, folder, **changed))
  (folder / "new.txt").write_text("import antigravity\n" * 100)
  pipeline.prepare(of_files(tmp_path, folder))
  assert len(set(calls)) == len(calls) == 6


def test_reads_what_tfds_reads(tmp_path, folder, monkeypatch):
  built = []
  source_of = builder.PackedSource.__init__

  def kept(self, dataset, split):
    built.append(dataset)
    source_of(self, dataset, split)

  monkeypatch.setattr(builder.PackedSource, "__init__", kept)
  dataset = pipeline.prepare(of_files(tmp_path, folder))
  for split, source in (("train", dataset.train), ("valid", dataset.valid)):
    reference = built[0].as_data_source(split)
    assert len(reference) == len(source)
    expected = np.stack([reference[i]["tokens"] for i in range(len(source))])
    np.testing.assert_array_equal(source.batch(range(len(source)))["inputs"], expected)


def test_threads_read_the_same(python_dataset):
  source = python_dataset.train
  indices = np.random.default_rng(0).permutation(len(source))[:4000].reshape(40, 100)
  expected = [source.tokens(row) for row in indices]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(source.tokens, indices))
  np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_large_vocabularies_take_32_bits(tmp_path):
  tokens = np.array([[1, 70_000, 3], [4, 5, 99_999]], np.uint32)
  config = builder.PackedConfig(
    name="large",
    length=3,
    dtype=np.uint32,
    blocks=lambda split: iter([tokens]),
    counts=lambda: {"train": {}, "valid": {}},
  )
  sources, _ = builder.build(tmp_path, config)
  np.testing.assert_array_equal(sources["valid"].batch([1, 0])["inputs"], tokens[::-1])


def test_a_killed_build_leaves_nothing_that_counts(tmp_path, folder):
  data_dir = tmp_path / "built"
  process = _start(data_dir, folder, "hang")
  assert process.stdout.readline() == "half\n"
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert list(data_dir.rglob("incomplete.*"))
  dataset = pipeline.prepare(of_files(tmp_path, folder))
  assert len(dataset.train) > 100
  assert not list(data_dir.rglob("incomplete.*"))


def test_processes_that_build_at_once_agree(tmp_path, folder):
  data_dir = tmp_path / "built"
  first = _start(data_dir, folder, "hang")
  assert first.stdout.readline() == "half\n"
  second = _start(data_dir, folder, "go")
  assert any("waiting for it" in line for line in second.stderr)  # for the first, which waits for us
  assert second.poll() is None
  outputs = [first.communicate(), second.communicate()]
  assert [p.returncode for p in (first, second)] == [0, 0], outputs
  assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
  assert outputs[1][0].endswith("False\n")  # TensorFlow was not imported
  assert len(list(data_dir.rglob("*train.array_record*"))) == 1


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing"),  # as ArrayRecord says it
  ],
)
def test_a_full_disk_is_reported(tmp_path, folder, monkeypatch, error):
  def fail(*args):
    raise error

  monkeypatch.setattr(builder.PackedText, "_generate_splits", fail)
  with pytest.raises(UserError, match="no space left.*--config.data.data_dir=FOLDER"):
    pipeline.prepare(of_files(tmp_path, folder))
  assert not list((tmp_path / "built").rglob("incomplete.*"))


@pytest.mark.parametrize("how", ["a file", "in a circle", "too long", "refused"])
@pytest.mark.parametrize("named", [False, True])  # a tokenizer: else it is the first to be written
def test_a_folder_that_cannot_be_written_is_reported(tmp_path, small, monkeypatch, how, named):
  config = of_files(tmp_path, small)
  if named:
    kept, content = pipeline.prepare(of_files(tmp_path / "before", small)).tokenizer.file
    (tmp_path / kept).write_bytes(content)
    config.data.tokenizer = str(tmp_path / kept)
  if how == "a file":
    (tmp_path / "built").write_text("a file")
  elif how == "in a circle":
    (tmp_path / "built").symlink_to("built")
  elif how == "too long":
    config.data.data_dir += "x" * 300
  else:

    def refuse(*args, **kwargs):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
  with pytest.raises(UserError, match="cannot be (written|read).*--config.data.data_dir=FOLDER") as caught:
    pipeline.prepare(config)
  assert "\n" not in str(caught.value)


def _damage(path, how):
  if how == "cut":
    os.truncate(path, path.stat().st_size // 2)
  elif how == "gone":
    path.unlink()
  else:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = b"x" * 50
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "gone", "overwritten"])
def test_a_damaged_dataset_is_named_with_what_to_do(tmp_path, small, how):
  config = of_files(tmp_path, small)
  pipeline.prepare(config)
  (path,) = (tmp_path / "built").rglob("*train.array_record*")
  _damage(path, how)
  with pytest.raises(UserError, match=r"is damaged .*remove the folder .*built anew") as caught:
    dataset = pipeline.prepare(config)
    dataset.train.tokens(range(len(dataset.train)))
  assert "\n" not in str(caught.value)
  shutil.rmtree(path.parent)
  assert len(pipeline.prepare(config).train) > 10


def test_a_dataset_that_is_cut_while_it_is_read_is_named(tmp_path, small):
  config = of_files(tmp_path, small)
  dataset = pipeline.prepare(config)
  (path,) = (tmp_path / "built").rglob("*train.array_record*")
  os.truncate(path, path.stat().st_size // 4)
  with pytest.raises(UserError, match="train.array_record.* is damaged"):
    list(zip(range(200), pipeline.train_iterator(dataset, config), strict=False))


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_description_is_named(tmp_path, small, name, content):
  config = of_files(tmp_path, small)
  pipeline.prepare(config)
  (path,) = (tmp_path / "built").rglob(name)
  path.write_text(content)
  with pytest.raises(UserError, match=r"is damaged .*remove the folder"):
    pipeline.prepare(config)


def test_no_descriptor_is_left_open(tmp_path, small):
  config = of_files(tmp_path, small)
  counts = []
  for _ in range(4):
    dataset = pipeline.prepare(config)
    dataset.train.batch(range(8))
    del dataset
    gc.collect()
    counts.append(len(os.listdir("/dev/fd")))
  assert counts[1:] == counts[:1] * 3
