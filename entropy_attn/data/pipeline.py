"""From a config to batches: opens or builds the dataset, shuffles, shards by host and batches it."""

from collections.abc import Iterator
import dataclasses
import hashlib
import pathlib
from typing import Protocol

import grain
import numpy as np

from entropy_attn.data import builder, corpora, languini, packing, text_files
from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.errors import UserError

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)  # in batches


class Sequences(Protocol):
  """Sequences by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

  def batch(self, indices) -> dict[str, np.ndarray]:
    """The sequences at `indices`, stacked."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What a run reads.

  Attributes:
    train: source[i] is {"inputs": int32 [T], "targets": int32 [T], "weights": float32 [T]}.
    valid: the same.
    vocab_size: every token is below it.
    shuffle: whether training may take the sequences in any order; Languini's order is part of its definition.
    description: one line for the log.
  """

  train: Sequences
  valid: Sequences
  vocab_size: int
  shuffle: bool
  description: str


def prepare(config) -> Dataset:
  """Opens the dataset of `config.data`, after building it below data.data_dir if it is not there.

  Raises:
    UserError: for a fault of the config or the text: what, where, and what to do.
  """
  length, how = config.model.context_length, config.data.packing
  if config.data.name == corpora.IN_PLACE:
    train, valid, description = languini.open_books(config)
    return Dataset(train, valid, config.model.vocab_size, False, description)
  root = pathlib.Path(config.data.data_dir).expanduser()
  corpus = corpora.CORPORA[config.data.name](config.data)
  tokenizer = tokenizer_lib.of_corpus(corpus, config, root)
  packer = packing.Packer(
    lambda split: tokenizer_lib.tokenize(corpus.documents(split), tokenizer), length, how, tokenizer.end_id
  )
  identity = text_files.fingerprint((corpus.fingerprint, tokenizer.fingerprint, length, how))
  packed = builder.PackedConfig(
    name=f"{corpus.name}-T{length}-V{tokenizer.vocab_size}-{how}-{identity}",
    length=length,
    dtype=tokenizer.dtype,
    blocks=packer.blocks,
    counts=lambda: {**packer.counts, "skipped": dict(corpus.skipped)},
  )
  sources, counted = builder.build(root, packed)
  return Dataset(sources["train"], sources["valid"], tokenizer.vocab_size, True, f"{corpus.name}: {_describe(counted)}")


def open_tokenizer(config) -> tokenizer_lib.Tokenizer:
  """The tokenizer of a config's dataset, to encode prompts and decode tokens.

  Raises:
    UserError: as `prepare`; for languini without data.tokenizer.
  """
  if config.data.name != corpora.IN_PLACE:
    corpus = corpora.CORPORA[config.data.name](config.data)
    return tokenizer_lib.of_corpus(corpus, config, pathlib.Path(config.data.data_dir).expanduser())
  if not config.data.tokenizer:
    raise UserError("languini: name its SentencePiece model, --config.data.tokenizer=books_16384.model")
  tokenizer = tokenizer_lib.open_tokenizer(config.data.tokenizer)
  tokenizer_lib.check_vocab_size(tokenizer.vocab_size, config.model.vocab_size, config.data.tokenizer)
  return tokenizer


def train_iterator(dataset: Dataset, config, *, shard_index: int = 0, shard_count: int = 1) -> grain.DatasetIterator:
  """Endless training batches of this shard.

  Batch s of all shards together is sequences s*B to s*B + B - 1 of the shuffled epochs laid end to end, a pure function
  of (train.seed, s). The state is the number of batches taken, so a run may resume with another number of shards.

  Returns:
    An iterator of {"inputs": int32 [b, T], "targets": int32 [b, T], "weights": float32 [b, T]}, b = B / shard_count,
    with get_state() and set_state().

  Raises:
    UserError: when B is not divisible by shard_count, or the training split is smaller than B.
  """
  size = config.train.batch_size
  rows = _rows_per_shard("train.batch_size", size, shard_index, shard_count)
  if len(dataset.train) < size:
    raise UserError(
      f"the training split has {len(dataset.train)} sequences, fewer than train.batch_size={size}: add text, or use "
      f"--config.train.batch_size={len(dataset.train)} or fewer"
    )
  # Grain orders the numbers alone; a whole batch is then read at once.
  indices = grain.MapDataset.range(len(dataset.train))
  if dataset.shuffle:
    indices = indices.shuffle(seed=_shuffle_seed(config.train.seed))
  batches = indices.repeat()[shard_index::shard_count].batch(rows, drop_remainder=True).map(dataset.train.batch)
  return iter(batches.to_iter_dataset(_READ_AHEAD))


def eval_batches(dataset: Dataset, config, *, shard_index: int = 0, shard_count: int = 1) -> Iterator[dict]:
  """This shard's validation batches, in order; as many on every shard.

  Yields:
    {"inputs": int32 [b, T], "targets": int32 [b, T], "weights": float32 [b, T]}, b = eval.batch_size / shard_count;
    rows past the end of the split weigh 0.

  Raises:
    UserError: when eval.batch_size is not divisible by shard_count.
  """
  size = config.eval.batch_size
  rows = _rows_per_shard("eval.batch_size", size, shard_index, shard_count)
  shard = slice(shard_index, size, shard_count)
  steps = range(eval_batch_count(dataset, config))
  return (_padded(dataset.valid, range(step * size, (step + 1) * size)[shard], rows) for step in steps)


def eval_batch_count(dataset: Dataset, config) -> int:
  """The number of batches that `eval_batches` gives."""
  count = -(-len(dataset.valid) // config.eval.batch_size)
  return min(count, config.eval.batches) if config.eval.batches else count


def _padded(source: Sequences, indices: range, rows: int) -> dict[str, np.ndarray]:
  """The sequences at `indices` and, for those past the end, rows of zeros."""
  present = [i for i in indices if i < len(source)]
  batch = source.batch(present or [0])  # a shard without rows still needs their shape
  if len(present) == rows:
    return batch
  padded = {name: np.zeros((rows, *value.shape[1:]), value.dtype) for name, value in batch.items()}
  for name, value in batch.items():
    padded[name][: len(present)] = value[: len(present)]
  return padded


def _describe(counted: dict) -> str:
  splits = [
    f"{split} {c['sequences']:,} sequences of {c['tokens']:,} tokens in {c['documents']:,} files"
    f" ({c['too short']:,} shorter than a sequence)"
    for split, c in ((split, counted[split]) for split in builder.SPLITS)
  ]
  skipped = [f"{count:,} {reason}" for reason, count in sorted(counted["skipped"].items()) if count]
  return "; ".join(splits) + (f"; files skipped: {', '.join(skipped)}" if skipped else "")


def _rows_per_shard(field: str, size: int, shard_index: int, shard_count: int) -> int:
  if not 0 <= shard_index < shard_count:
    raise ValueError(f"shard {shard_index} of {shard_count}")
  if size % shard_count:
    raise UserError(f"{field}={size} is not divisible by the {shard_count} processes: use a multiple of {shard_count}")
  return size // shard_count


def _shuffle_seed(seed: int) -> int:
  # Grain shuffles epoch e with seed + e: hashed, so that one seed's second epoch is not the next one's first.
  return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest())
