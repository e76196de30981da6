"""From a config to batches: opens or builds the dataset, shuffles, shards by host and batches it."""

from collections.abc import Iterator
import dataclasses
import hashlib
from typing import Protocol

import grain
import numpy as np

from entropy_attn import paths
from entropy_attn.data import builder, codeparrot, corpora, languini, packing, text_files
from entropy_attn.data import identity as identity_lib
from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.errors import UserError
from entropy_attn.progress import say

# Those of which a dataset is built, by data.name: each a function of config.data that gives a `corpora.Corpus`.
_CORPORA = {
  "python_source": text_files.python_source,
  "codeparrot": codeparrot.codeparrot,
  "text_files": text_files.text_files,
}
# What names the tokenizer where data.tokenizer is empty; without one it is trained on the text.
_TOKENIZERS = {"codeparrot": codeparrot.TOKENIZER}
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
    tokenizer: that of the tokens; None: languini without data.tokenizer.
    identity: what the figures depend on, plain JSON (`identity`).
    token_bytes: int32 [V], the bytes of text that each token stands for; None: not known.
  """

  train: Sequences
  valid: Sequences
  vocab_size: int
  shuffle: bool
  description: str
  tokenizer: tokenizer_lib.Tokenizer | None = None
  identity: dict = dataclasses.field(default_factory=dict)
  token_bytes: np.ndarray | None = None


def prepare(config, tokenizer: tokenizer_lib.Tokenizer | None = None) -> Dataset:
  """Opens the dataset of `config.data`, after building it below data.data_dir if it is not there.

  Args:
    config: all of it; the data group says which text, the model group T and the size of the vocabulary.
    tokenizer: that of a run, to be used in place of the one that the config names or would train.

  Raises:
    UserError: for a fault of the config or the text: what, where, and what to do.
  """
  if tokenizer is not None:
    tokenizer_lib.check_fits(tokenizer, config.model.vocab_size, "the run's tokenizer")
  if config.data.name == corpora.IN_PLACE:
    return _in_place(config, tokenizer)
  length, how = config.model.context_length, config.data.packing
  corpus, opened = _open(config, tokenizer)
  for note in corpus.notes:
    say(note)
  packer = packing.Packer(
    lambda split: tokenizer_lib.tokenize(corpus.documents(split), opened), length, how, opened.end_id
  )
  key = identity_lib.digest_of((corpus.fingerprint, opened.fingerprint, length, how))
  packed = builder.PackedConfig(
    name=f"{corpus.name}-T{length}-V{opened.vocab_size}-{how}-{key}",
    length=length,
    dtype=opened.dtype,
    blocks=packer.blocks,
    counts=lambda: _metadata(corpus, packer),
  )
  sources, metadata = builder.build(paths.expand(config.data.data_dir, "data.data_dir"), packed)
  parts = {split: identity_lib.of_split(c, c["digest"], c["files"]) for split, c in _splits(metadata)}
  return Dataset(
    train=sources["train"],
    valid=sources["valid"],
    vocab_size=opened.vocab_size,
    shuffle=True,
    description=f"{corpus.name}: {_describe(metadata, corpus.left_out)}",
    tokenizer=opened,
    identity=identity_lib.of_dataset(corpus.name, opened.fingerprint, length, how, parts),
    token_bytes=opened.token_bytes,
  )


def open_tokenizer(config) -> tokenizer_lib.Tokenizer:
  """The tokenizer of a config's dataset, to encode prompts and decode tokens.

  Raises:
    UserError: as `prepare`; for languini without data.tokenizer.
  """
  if config.data.name != corpora.IN_PLACE:
    return _open(config, None)[1]
  opened = _named_tokenizer(config)
  if opened is None:
    raise UserError("languini: name its SentencePiece model, --config.data.tokenizer=books_16384.model")
  return opened


def _open(config, tokenizer: tokenizer_lib.Tokenizer | None) -> tuple[corpora.Corpus, tokenizer_lib.Tokenizer]:
  """The corpus of a config, and the tokenizer: the given one, or the config's."""
  root = paths.expand(config.data.data_dir, "data.data_dir")
  corpus = _CORPORA[config.data.name](config.data)
  default = _TOKENIZERS.get(config.data.name, "")
  return corpus, tokenizer or tokenizer_lib.of_corpus(corpus, config, root, default)


def _in_place(config, tokenizer: tokenizer_lib.Tokenizer | None) -> Dataset:
  train, valid, description, parts = languini.open_books(config)
  opened = tokenizer or _named_tokenizer(config)
  fingerprint = opened and opened.fingerprint
  return Dataset(
    train=train,
    valid=valid,
    vocab_size=config.model.vocab_size,
    shuffle=False,
    description=description,
    tokenizer=opened,
    identity=identity_lib.of_dataset(corpora.IN_PLACE, fingerprint, config.model.context_length, None, parts),
    token_bytes=opened and opened.token_bytes,
  )


def _named_tokenizer(config) -> tokenizer_lib.Tokenizer | None:
  if not config.data.tokenizer:
    return None
  opened = tokenizer_lib.open_tokenizer(config.data.tokenizer)
  tokenizer_lib.check_fits(opened, config.model.vocab_size, f"data.tokenizer={config.data.tokenizer!r}")
  return opened


def _metadata(corpus: corpora.Corpus, packer: packing.Packer) -> dict:
  """What a built dataset keeps of its making, when all splits have passed."""
  splits = {split: {**counts, "files": {}} for split, counts in packer.counts.items()}
  for split, counts in splits.items():
    if "digest" in counts:
      counts["files"] = corpus.files(split)
  return {**splits, "skipped": dict(corpus.skipped), "mended": dict(corpus.mended)}


def _splits(metadata: dict) -> Iterator[tuple[str, dict]]:
  return ((split, metadata[split]) for split in builder.SPLITS)


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


def _describe(metadata: dict, left_out: dict[str, int]) -> str:
  splits = [
    f"{split} {c['sequences']:,} sequences of {c['tokens']:,} tokens in {c['documents']:,} files"
    f" ({c['too short']:,} shorter than a sequence)"
    for split, c in _splits(metadata)
  ]
  skipped = [f"{count:,} {reason}" for reason, count in sorted({**metadata["skipped"], **left_out}.items()) if count]
  mended = sum(metadata["mended"].values())
  return (
    "; ".join(splits)
    + (f"; files skipped: {', '.join(skipped)}" if skipped else "")
    + (f"; unpaired surrogates replaced in {mended:,} files" if mended else "")
  )


def _rows_per_shard(field: str, size: int, shard_index: int, shard_count: int) -> int:
  if not 0 <= shard_index < shard_count:
    raise ValueError(f"shard {shard_index} of {shard_count}")
  if size % shard_count:
    raise UserError(f"{field}={size} is not divisible by the {shard_count} processes: use a multiple of {shard_count}")
  return size // shard_count


def _shuffle_seed(seed: int) -> int:
  # Grain shuffles epoch e with seed + e: hashed, so that one seed's second epoch is not the next one's first.
  return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest())
