"""Batches: pure in (seed, step), the same for any number of shards, resumable; evaluation in order and padded."""

import dataclasses
import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from entropy_attn.data import packing, pipeline
from entropy_attn.errors import UserError
from tests.data.small_configs import make_config


class Numbered:
  """Sequences that all hold their own number."""

  def __init__(self, count):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    if index >= self._count:
      raise IndexError(index)
    return packing.example(np.full(4, index, np.uint16))

  def batch(self, indices):
    return packing.example(np.repeat(np.asarray(indices)[:, None], 4, axis=1).astype(np.uint16))


def _numbered(count, shuffle=True):
  return pipeline.Dataset(Numbered(count), Numbered(count), 1 << 16, shuffle, "")


def _take(dataset, config, count, **shard):
  iterator = pipeline.train_iterator(dataset, config, **shard)
  return [batch["inputs"][:, 0].tolist() for batch in itertools.islice(iterator, count)]


def _config(tmp_path, batch_size=6, seed=0, **fields):
  return make_config(tmp_path, train__batch_size=batch_size, train__seed=seed, **fields)


@settings(deadline=None, max_examples=15)
@given(st.integers(12, 40), st.integers(0, 2**40), st.sampled_from([2, 3, 4, 6, 12]))
def test_batches_do_not_depend_on_the_number_of_shards(count, seed, shard_count):
  config, dataset = _config("unused", 12, seed), _numbered(count)
  whole = _take(dataset, config, 5)
  shards = [_take(dataset, config, 5, shard_index=i, shard_count=shard_count) for i in range(shard_count)]
  for step, batch in enumerate(whole):
    assert all(len(shard[step]) == 12 // shard_count for shard in shards)
    assert sorted(batch) == sorted(n for shard in shards for n in shard[step])


@settings(deadline=None, max_examples=15)
@given(st.integers(7, 40), st.integers(0, 2**40), st.booleans())
def test_each_epoch_visits_every_sequence_once(count, seed, shuffle):
  numbers = list(itertools.chain(*_take(_numbered(count, shuffle), _config("unused", 7, seed), 2 * count)))
  epochs = [numbers[i * count : (i + 1) * count] for i in range(14)]
  assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
  if shuffle:
    assert len(set(map(tuple, epochs))) > 1  # reshuffled
  else:
    assert all(epoch == list(range(count)) for epoch in epochs)


def test_order_is_set_by_the_seed(tmp_path):
  dataset = _numbered(50)
  assert _take(dataset, _config(tmp_path, seed=3), 20) == _take(dataset, _config(tmp_path, seed=3), 20)
  assert _take(dataset, _config(tmp_path, seed=3), 20) != _take(dataset, _config(tmp_path, seed=4), 20)
  second_epoch = list(itertools.chain(*_take(dataset, _config(tmp_path, 10, 3), 10)))[50:]
  assert second_epoch != list(itertools.chain(*_take(dataset, _config(tmp_path, 10, 4), 5)))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 20), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 6]))
def test_resumed_on_other_shards_equals_uninterrupted(taken, before, after):
  config, dataset = _config("unused"), _numbered(20)
  first = pipeline.train_iterator(dataset, config, shard_index=before - 1, shard_count=before)
  for _ in range(taken):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  expected = _take(dataset, config, taken + 3)[taken:]
  resumed = []
  for shard in range(after):
    iterator = pipeline.train_iterator(dataset, config, shard_index=shard, shard_count=after)
    iterator.set_state(state)
    resumed.append([next(iterator)["inputs"][:, 0].tolist() for _ in range(3)])
  for step, batch in enumerate(expected):
    assert sorted(batch) == sorted(n for shard in resumed for n in shard[step])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_evaluation_reads_each_sequence_once_in_order(count, shard_count, batches):
  config, dataset = make_config("unused", eval__batch_size=8, eval__batches=batches), _numbered(count)
  shards = [
    list(pipeline.eval_batches(dataset, config, shard_index=i, shard_count=shard_count)) for i in range(shard_count)
  ]
  assert {len(shard) for shard in shards} == {pipeline.eval_batch_count(dataset, config)}
  seen = []
  for step in range(len(shards[0])):
    rows = [shard[step] for shard in shards]
    assert all(batch["inputs"].shape == (8 // shard_count, 4) for batch in rows)
    numbers = [n for b in rows for n, w in zip(b["inputs"][:, 0].tolist(), b["weights"].any(axis=1), strict=True) if w]
    seen += sorted(numbers)
  assert seen == list(range(min(count, 8 * batches if batches else count)))


def test_batch_sizes_that_do_not_divide_are_refused(tmp_path):
  with pytest.raises(UserError, match="train.batch_size=6 is not divisible by the 4 processes"):
    pipeline.train_iterator(_numbered(20), _config(tmp_path), shard_index=0, shard_count=4)
  with pytest.raises(UserError, match="eval.batch_size=8 is not divisible by the 3 processes"):
    pipeline.eval_batches(_numbered(20), _config(tmp_path), shard_index=0, shard_count=3)


def test_less_than_a_batch_is_refused(tmp_path):
  with pytest.raises(UserError, match="5 sequences, fewer than train.batch_size=6.*batch_size=5"):
    pipeline.train_iterator(_numbered(5), _config(tmp_path))


def test_python_source(python_dataset, python_config):
  assert python_dataset.vocab_size == 1024
  assert python_dataset.shuffle
  assert len(python_dataset.train) > 20 * len(python_dataset.valid) > 0
  assert "python_source: train" in python_dataset.description
  iterator = pipeline.train_iterator(python_dataset, python_config)
  batch = next(iterator)
  for name, dtype in (("inputs", np.int32), ("targets", np.int32), ("weights", np.float32)):
    assert batch[name].shape == (12, 128)
    assert batch[name].dtype == dtype
  assert batch["inputs"].max() < 1024
  np.testing.assert_array_equal(batch["targets"][:, :-1], batch["inputs"][:, 1:])
  assert (batch["weights"].sum(axis=1) == 127).all()
  assert iterator.get_state() == {"next_index": 1}
  first = python_dataset.train[0]
  np.testing.assert_array_equal(first["inputs"], python_dataset.train.batch([0])["inputs"][0])
  with pytest.raises(IndexError):
    python_dataset.train[len(python_dataset.train)]


def test_python_source_decodes_to_python(python_dataset, python_config):
  tokenizer = pipeline.open_tokenizer(python_config)
  text = tokenizer.decode(np.concatenate([python_dataset.train[i]["inputs"] for i in range(40)]))
  assert "import" in text


def test_python_source_takes_a_named_tokenizer(python_config, python_dataset, tmp_path):
  config = python_config.copy_and_resolve_references()
  name, content = python_dataset.tokenizer.file
  (tmp_path / name).write_bytes(content)
  config.data.tokenizer = str(tmp_path / name)
  assert pipeline.prepare(config).identity == python_dataset.identity
  config.data.tokenizer = str(tmp_path / "none.json")
  with pytest.raises(UserError, match="none.json' does not exist"):
    pipeline.prepare(config)


def test_dataset_is_immutable(python_dataset):
  with pytest.raises(dataclasses.FrozenInstanceError):
    python_dataset.vocab_size = 1
