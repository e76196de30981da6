"""Tokenizers: read from a file or the Hub, or trained on the text at hand; one small interface for all."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import re

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from entropy_attn import paths
from entropy_attn.data import hub
from entropy_attn.data import token_bytes as token_bytes_lib
from entropy_attn.data.once import once
from entropy_attn.errors import UserError, one_line
from entropy_attn.progress import timed

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<D>", "<eos>", "<|end_of_text|>")
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 4_000_000
# BPE counts every distinct word, and more text than this no longer changes its merges much.
_TRAINING_CHARACTERS = 200_000_000
# The time to train on a word is quadratic in its length. No word of a language is as long as this.
_LONGEST_WORD = 10_000
_LONG_WORD = re.compile(rf"(?<!\S)\S{{{_LONGEST_WORD + 1},}}|(?<!\s)\s{{{_LONGEST_WORD + 1},}}")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text ↔ token ids.

  Attributes:
    vocab_size: the largest id and one: ids are in [0, vocab_size), where some may be of no entry.
    end_id: the end-of-text token, or None where the vocabulary has none.
    fingerprint: 16 hex digits of the content of `file`.
    file: the name and content of one file that opens as this tokenizer, with `open_file`.
    encode_batch: texts → lists of ids, without special tokens.
    decode: ids → text.
    entries: how many tokens it has; None: vocab_size.
    token_bytes: int32 [vocab_size], the bytes of text that each token stands for (`token_bytes`); None: not known.
  """

  vocab_size: int
  end_id: int | None
  fingerprint: str
  file: tuple[str, bytes]
  encode_batch: Callable[[list[str]], list[list[int]]]
  decode: Callable[[Sequence[int]], str]
  entries: int | None = None
  token_bytes: np.ndarray | None = None

  @property
  def dtype(self) -> type:
    """The smallest unsigned type that holds every id, of at least 16 bits."""
    return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


def open_tokenizer(name: str) -> Tokenizer:
  """Opens a tokenizer.json, a SentencePiece .model, a folder or a Hub name.

  A folder, like a Hub repository, holds tokenizer.json, or vocab.json and merges.txt.

  Raises:
    UserError: when there is no such file, folder or repository, or when it cannot be read.
  """
  path = paths.expand(name, "data.tokenizer")
  if not os.path.exists(path):
    if path.suffix in (".json", ".model") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
      raise UserError(
        f"data.tokenizer={name!r} does not exist: name a tokenizer.json, a SentencePiece .model or a Hub repository"
      )
    path = _from_hub(name)
  if path.is_file():
    return open_file(path)
  if (path / "tokenizer.json").is_file():
    return _json(path / "tokenizer.json")
  if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
    return _vocab_and_merges(path)
  raise UserError(f"data.tokenizer={name!r}: {path} holds neither tokenizer.json nor vocab.json with merges.txt")


def open_file(path: pathlib.Path) -> Tokenizer:
  """Opens a tokenizer that is one file: a SentencePiece .model, else a tokenizers JSON, such as `Tokenizer.file`.

  Raises:
    UserError: when it cannot be read, or is damaged.
  """
  return _sentencepiece(path) if path.suffix == ".model" else _json(path)


def of_corpus(corpus, config, root: pathlib.Path, default: str = "") -> Tokenizer:
  """The tokenizer that a config names for a corpus; else one trained once on the corpus's text and kept below `root`.

  codeparrot has a default and never trains one.

  Args:
    corpus: a `corpora.Corpus`.
    config: its data group names the tokenizer, its model group the size of the vocabulary.
    default: what names it where data.tokenizer is empty; "": one is trained.

  Raises:
    UserError: when the named one cannot be opened or has another size, or the text is too small to train one.
  """
  vocab_size = config.model.vocab_size
  if name := config.data.tokenizer or default:
    tokenizer = open_tokenizer(name)
    check_fits(tokenizer, vocab_size, f"data.tokenizer={name!r}")
    return tokenizer
  folder = root / "tokenizers"
  path = folder / f"{corpus.name}-V{vocab_size}-{corpus.fingerprint}.json"

  def make() -> None:
    unfinished = path.with_name(f"incomplete.{path.name}")
    what = f"training a byte-level BPE of {vocab_size:,} entries on the training text"
    timed(what, lambda: train(corpus.documents("train"), vocab_size, unfinished))
    os.replace(unfinished, path)

  once(path, make, own=folder)
  return _json(path)


def train(texts: Iterable[str], vocab_size: int, path: pathlib.Path) -> None:
  """Trains a byte-level BPE of exactly `vocab_size` entries and writes it to `path`.

  Its first entry is the end-of-text token, the next 256 are the bytes: no text is out of its vocabulary. Merges seen
  once count too, so that a small corpus reaches a large vocabulary. It reads the first 200 M characters, and cuts words
  of more than 10,000.

  Raises:
    UserError: when `vocab_size` is below 257, or the text too small to fill it.
  """
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if vocab_size <= len(alphabet):
    raise UserError(
      f"model.vocab_size={vocab_size} cannot hold the {len(alphabet)} bytes and the end-of-text token: "
      "use --config.model.vocab_size=2048"
    )
  tokenizer = _byte_level(models.BPE())
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator(_first(texts, _TRAINING_CHARACTERS), trainer)
  if tokenizer.get_vocab_size() != vocab_size:
    raise UserError(
      f"the text is too small for a vocabulary of {vocab_size}: byte pairs end at {tokenizer.get_vocab_size()}; "
      f"use --config.model.vocab_size={tokenizer.get_vocab_size()} or fewer, or more text"
    )
  path.write_text(tokenizer.to_str(), encoding="utf-8")


def tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
  """Tokenises documents in order, some megabytes at a time on all cores.

  Yields:
    One array [n] of tokenizer.dtype a document.
  """
  batch: list[str] = []
  characters = 0
  for text in texts:
    batch.append(text)
    characters += len(text)
    if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
      yield from (np.asarray(ids, tokenizer.dtype) for ids in tokenizer.encode_batch(batch))
      batch, characters = [], 0
  if batch:
    yield from (np.asarray(ids, tokenizer.dtype) for ids in tokenizer.encode_batch(batch))


def check_vocab_size(found: int, wanted: int, what: str) -> None:
  """Raises UserError unless the vocabulary of `what` has the size that the model expects."""
  if found != wanted:
    raise UserError(f"{what} has {found} entries but model.vocab_size={wanted}: use --config.model.vocab_size={found}")


def check_fits(tokenizer: Tokenizer, wanted: int, what: str) -> None:
  """Raises UserError unless the model's vocabulary is the tokenizer's: all ids up to the largest."""
  if tokenizer.entries in (None, tokenizer.vocab_size):
    check_vocab_size(tokenizer.vocab_size, wanted, what)
  elif tokenizer.vocab_size != wanted:
    raise UserError(
      f"{what} has {tokenizer.entries} entries, but the largest id is {tokenizer.vocab_size - 1} and "
      f"model.vocab_size={wanted}: use --config.model.vocab_size={tokenizer.vocab_size}"
    )


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
  for text in texts:
    if characters <= 0:
      return
    characters -= len(text)
    yield from _without_long_words(text)


def _without_long_words(text: str) -> Iterator[str]:
  """The text, cut within words that are too long to train on; as it is where it has none."""
  done = 0
  for word in _LONG_WORD.finditer(text):
    for cut in range(word.start() + _LONGEST_WORD, word.end(), _LONGEST_WORD):
      yield text[done:cut]
      done = cut
  yield text[done:]


def _byte_level(model) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _json(path: pathlib.Path) -> Tokenizer:
  content = _read(path)
  try:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8-sig"))
  except Exception as error:  # the Rust library raises this very class
    raise UserError(f"data.tokenizer: {path} is not a tokenizers JSON file ({one_line(error)})") from error
  return _wrap(tokenizer)


def _vocab_and_merges(folder: pathlib.Path) -> Tokenizer:
  vocab, merges = folder / "vocab.json", folder / "merges.txt"
  try:
    tokenizer = _byte_level(models.BPE.from_file(str(vocab), str(merges)))
  except Exception as error:  # the Rust library raises this very class
    raise UserError(
      f"data.tokenizer: {folder} holds no readable vocab.json and merges.txt ({one_line(error)})"
    ) from error
  known = tokenizer.get_vocab()
  tokenizer.add_special_tokens([name for name in _END_NAMES if name in known])
  return _wrap(tokenizer)


def _wrap(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
  tokenizer.no_truncation()  # a saved tokenizer may cut or pad
  tokenizer.no_padding()
  ends = [tokenizer.token_to_id(name) for name in _END_NAMES]
  end_id = next((end for end in ends if end is not None), None)
  content = tokenizer.to_str()
  vocabulary = tokenizer.get_vocab()
  vocab_size = max(vocabulary.values(), default=-1) + 1

  def encode_batch(texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

  return Tokenizer(
    vocab_size=vocab_size,
    end_id=end_id,
    fingerprint=hashlib.blake2b(content.encode(), digest_size=8).hexdigest(),
    file=("tokenizer.json", content.encode()),
    encode_batch=encode_batch,
    decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
    entries=len(vocabulary),
    token_bytes=token_bytes_lib.of_json(json.loads(content), vocab_size, end_id),
  )


def _sentencepiece(path: pathlib.Path) -> Tokenizer:
  content = _read(path)
  model = sentencepiece.SentencePieceProcessor()
  try:
    model.LoadFromSerializedProto(content)
  except RuntimeError as error:
    raise UserError(f"data.tokenizer: {path} is not a SentencePiece model ({one_line(error)})") from error
  pieces = {model.IdToPiece(i): i for i in range(model.GetPieceSize())}
  end_id = next((pieces[name] for name in _END_NAMES if name in pieces), None)
  return Tokenizer(
    vocab_size=model.GetPieceSize(),
    end_id=end_id,
    fingerprint=hashlib.blake2b(content, digest_size=8).hexdigest(),
    file=("tokenizer.model", content),
    encode_batch=lambda texts: model.Encode(texts, out_type=int),
    decode=lambda ids: model.Decode([int(i) for i in ids]),
    token_bytes=token_bytes_lib.of_sentencepiece(model, end_id),
  )


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"data.tokenizer: {path} cannot be read ({error.strerror}): name another file") from error


def _from_hub(name: str) -> pathlib.Path:
  try:
    return hub.fetch(name, "model", ["tokenizer.json", "vocab.json", "merges.txt"])
  except UserError as error:
    raise UserError(
      f"data.tokenizer={name!r}: {error}. Name a local file, --config.data.tokenizer=FILE (a tokenizer.json or a "
      "SentencePiece .model), or train the same model on the embedded corpus: --config.data.name=python_source"
    ) from error
