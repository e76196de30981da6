"""Sequences of tokens, built once into ArrayRecord files by TFDS and read by many rows at a time."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import io
import os
import pathlib

from absl import logging
from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds

from entropy_attn.data import packing
from entropy_attn.data.once import once
from entropy_attn.errors import UserError, one_line

SPLITS = ("train", "valid")
_FEATURE = "tokens"


@dataclasses.dataclass
class PackedConfig(tfds.core.BuilderConfig):
  """What makes one built dataset.

  Attributes:
    length: T.
    dtype: of the stored tokens.
    blocks: split → arrays [k, T] of dtype; they are asked for only when the dataset is built.
    counts: what the dataset's metadata keeps beside its records; read after the blocks of all splits.
  """

  length: int = 0
  dtype: type = np.uint16
  blocks: Callable[[str], Iterator[np.ndarray]] | None = None
  counts: Callable[[], dict] | None = None


class PackedText(tfds.core.GeneratorBasedBuilder):
  """Fixed-length sequences of tokens, in the order in which they were packed."""

  VERSION = tfds.core.Version("2.0.0")  # 1.0.0 kept no digest of its tokens
  url_infos = None  # nothing is downloaded; looking for checksums imports a package that TFDS does not require

  def _info(self) -> tfds.core.DatasetInfo:
    tokens_T = tfds.features.Tensor(
      shape=(self.builder_config.length,), dtype=self.builder_config.dtype, encoding=tfds.features.Encoding.BYTES
    )
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({_FEATURE: tokens_T}),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # the corpora bring their own files
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    key = 0
    for block in self.builder_config.blocks(split):
      for tokens_T in block:
        yield key, {_FEATURE: tokens_T}
        key += 1

  def _generate_splits(self, dl_manager, download_config) -> list[tfds.core.SplitInfo]:
    """Streams each split to its file: TFDS's own writer holds a split in memory and past 1 GB needs TensorFlow."""
    del download_config
    infos = []
    for split, examples in self._split_generators(dl_manager).items():
      template = self._get_filename_template(split_name=split)
      path = template.sharded_filepath(shard_index=0, num_shards=1)
      # Tokens hardly compress, and single records read faster without.
      writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
      count = size = 0
      for _, example in examples:
        record = self.info.features.serialize_example(example)
        writer.write(record)
        count, size = count + 1, size + len(record)
      writer.close()
      if not count:
        left_out = ", ".join(f"{n:,} {why}" for why, n in self.builder_config.counts().get("skipped", {}).items() if n)
        raise UserError(
          f"no document of the {split} split has model.context_length={self.builder_config.length} tokens"
          f"{f' (files skipped: {left_out})' if left_out else ''}: add text, lower --config.model.context_length, or "
          "join documents with --config.data.packing=concat"
        )
      infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=size, filename_template=template))
    self.info.metadata.update(self.builder_config.counts())
    return infos


class PackedSource:
  """The records of one split: source[i] is a dict of [T] arrays, source.batch(indices) one of [B, T] arrays.

  TFDS describes the file and this reads it, since its data source asks ArrayRecord for lists of records, which searches
  the whole table each time: 3 ms a record in a file of a million, where a range of one record takes 4 µs in any file.
  """

  def __init__(self, dataset: PackedText, split: str):
    """Raises UserError when the file is damaged."""
    (path,) = dataset.info.splits[split].filepaths
    self._path = pathlib.Path(path)
    # Without read-ahead and with a small buffer, since the order is random.
    self._reader = array_record_module.ArrayRecordReader(
      os.fspath(path), options="readahead_buffer_size:0,max_parallelism:1", file_reader_buffer_size=32_768
    )
    self._length = dataset.builder_config.length
    self._dtype = np.dtype(dataset.builder_config.dtype)
    if not self._reader.ok() or len(self) != dataset.info.splits[split].num_examples:
      raise UserError(_damaged(self._path, "it is gone, or not whole"))
    # A record is a tf.Example of fixed size that ends with its tokens.
    first_T = dataset.info.features.deserialize_example_np(self._read(0))[_FEATURE]
    if not np.array_equal(self.tokens([0])[0], first_T):
      raise UserError(_damaged(self._path, "it is not as this version of TFDS would have written it"))

  def __len__(self) -> int:
    return self._reader.num_records()

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f"sequence {index} of {len(self)}")
    return packing.example(self.tokens([index])[0])

  def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """inputs int32 [B, T], targets int32 [B, T], weights float32 [B, T] of the records at `indices`."""
    return packing.example(self.tokens(indices))

  def tokens(self, indices: Sequence[int]) -> np.ndarray:
    """The stored tokens [B, T] of the records at `indices`.

    Raises:
      UserError: when one cannot be read.
    """
    size = self._length * self._dtype.itemsize
    joined = b"".join([self._read(i)[-size:] for i in map(int, indices)])
    if len(joined) != size * len(indices):  # what is beyond the end of a cut file reads as nothing
      raise UserError(_damaged(self._path, "a record is cut short"))
    return np.frombuffer(joined, self._dtype).reshape(-1, self._length)

  def _read(self, index: int) -> bytes:
    try:
      return self._reader.read(index, index + 1)[0]
    except (RuntimeError, ValueError, IndexError) as error:
      raise UserError(_damaged(self._path, f"record {index}: {error}")) from error


def build(root: pathlib.Path, config: PackedConfig) -> tuple[dict[str, PackedSource], dict]:
  """Opens the dataset `config.name` below `root`, after building it if it is not there.

  A build becomes visible whole or not at all; processes that want the same dataset at once wait for the first.

  Returns:
    The source of each split, and the metadata that `config.counts` gave when it was built.

  Raises:
    UserError: when a split is empty, `root` cannot be written or is full, or what is there is damaged.
  """
  if "**" in str(root):  # TFDS globs there
    raise UserError(f"{root} has '**' in its name: choose another folder with --config.data.data_dir=FOLDER")
  dataset, _ = _described(root, config)
  folder = pathlib.Path(dataset.data_dir)
  once(folder, lambda: _prepare(dataset), own=folder.parents[1])
  dataset, metadata = _described(root, config)  # anew: another process may have built it
  if set(dataset.info.splits) != set(SPLITS) or not metadata.keys() >= set(SPLITS):
    raise UserError(_damaged(folder, "its description lacks a split"))
  return {split: PackedSource(dataset, split) for split in SPLITS}, metadata


def _described(root: pathlib.Path, config: PackedConfig) -> tuple[PackedText, dict]:
  """The dataset as its files describe it, and its metadata, if they are there."""
  try:
    with _quiet():
      dataset = PackedText(data_dir=root, config=config, file_format="array_record")
      return dataset, dict(dataset.info.metadata or {})
  except OSError as error:
    raise UserError(
      f"{root} cannot be read ({error.strerror or error}): choose a folder with --config.data.data_dir=FOLDER"
    ) from error
  except Exception as error:  # of TFDS, protobuf or JSON
    folder = root / PackedText.name / config.name / str(PackedText.VERSION)
    raise UserError(_damaged(folder, str(error))) from error


def _damaged(path: pathlib.Path, reason: str) -> str:
  folder = path if os.path.isdir(path) else path.parent
  return (
    f"{path} is damaged ({one_line(reason)}): remove the folder {folder} and run the same command; it is built anew"
  )


def _prepare(dataset: PackedText) -> None:
  # TFDS would otherwise ask the network whether it hosts the dataset.
  with _quiet():
    dataset.download_and_prepare(
      download_dir=pathlib.Path(dataset.data_dir).parents[1] / "downloads",  # nothing comes, but it makes the folder
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS's announcements away; ours and the progress bars go to standard error."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
