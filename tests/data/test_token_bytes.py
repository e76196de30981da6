"""The bytes of text that tokens stand for: their sum over a text's tokens is the text's length."""

import io
import json

from hypothesis import example, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from entropy_attn.data import pipeline, tokenizer

_TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory, texts):
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  tokenizer.train(texts, 500, path)
  return tokenizer.open_file(path)


def _open(tmp_path, made):
  made.save(str(tmp_path / "t.json"))
  return tokenizer.open_file(tmp_path / "t.json")


@settings(deadline=None)
@given(_TEXTS)
@example("naïve 🙂\n\n\tif x:\r\n \0 ﷺ")
def test_byte_level_sums_to_the_texts_bytes(byte_level, text):
  (ids,) = byte_level.encode_batch([text])
  assert byte_level.token_bytes[ids].sum() == len(text.encode())


def test_byte_level_shape_and_the_end_of_text(byte_level, python_dataset):
  assert byte_level.token_bytes.shape == (500,)
  assert byte_level.token_bytes.dtype == np.int32
  assert byte_level.token_bytes[byte_level.end_id] == 0
  assert (np.delete(byte_level.token_bytes, byte_level.end_id) > 0).all()
  tokens = python_dataset.valid.batch(range(4))["inputs"]
  text = python_dataset.tokenizer.decode(tokens.ravel())
  assert abs(python_dataset.token_bytes[tokens].sum() - len(text.encode())) < 8 * len(tokens)  # cut characters


def test_added_tokens_are_their_text_and_special_ones_nothing(tmp_path, byte_level):
  made = tokenizers.Tokenizer.from_str(byte_level.file[1].decode())
  made.add_tokens(["         "])
  made.add_special_tokens(["<|pad|>"])
  opened = _open(tmp_path, made)
  assert opened.token_bytes[-2:].tolist() == [9, 0]


def _metaspace(texts, *, byte_fallback):
  made = tokenizers.Tokenizer(models.BPE(byte_fallback=byte_fallback, unk_token="<unk>"))
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  made.decoder = decoders.Metaspace()
  special = ["<unk>", "<s>", "</s>"]
  fallback = [f"<0x{i:02X}>" for i in range(256)] if byte_fallback else []
  made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
  spec = json.loads(made.to_str())
  for piece in fallback:
    spec["model"]["vocab"][piece] = len(spec["model"]["vocab"])
  return tokenizers.Tokenizer.from_str(json.dumps(spec))


def test_metaspace_counts_spaces_and_fallback_bytes(tmp_path, texts):
  opened = _open(tmp_path, _metaspace(texts, byte_fallback=True))
  for text in (texts[0], "a  b", "x\n☃ 🙂 日本"):
    (ids,) = opened.encode_batch([text])
    prefix = not text.startswith(" ")  # the space that it puts before the text
    assert opened.token_bytes[ids].sum() == len(text.encode()) + prefix
  assert opened.token_bytes[:3].tolist() == [0, 0, 0]


def test_sentencepiece_counts_spaces_bytes_and_no_control(tmp_path, texts):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter("\n".join(texts).splitlines()[:2000]), model_writer=model, vocab_size=600,
      model_type="bpe", minloglevel=2, byte_fallback=True, user_defined_symbols="<D>,<tag>",
      normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
  )  # fmt: skip
  (tmp_path / "m.model").write_bytes(model.getvalue())
  opened = tokenizer.open_file(tmp_path / "m.model")
  for text in (texts[0], "a  b", " x\n☃ 🙂"):
    (ids,) = opened.encode_batch([text])
    assert opened.token_bytes[ids].sum() == len(text.encode())
  names = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  found = [int(opened.token_bytes[names.PieceToId(piece)]) for piece in ("<D>", "<tag>", "<s>", "<unk>", "<0x0A>")]
  assert (names.IdToPiece(opened.end_id), found) == ("</s>", [3, 5, 0, 0, 1])


def test_tokens_that_are_no_pieces_of_the_text_have_none(tmp_path, texts):
  made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"], show_progress=False)
  made.train_from_iterator(texts, trainer)
  assert _open(tmp_path, made).token_bytes is None
  lowered = tokenizers.Tokenizer(models.BPE())
  lowered.pre_tokenizer = pre_tokenizers.ByteLevel()
  lowered.normalizer = normalizers.Lowercase()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  lowered.train_from_iterator(
    texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
  )
  assert _open(tmp_path, lowered).token_bytes is None


def test_the_dataset_has_them(python_dataset, python_config):
  assert python_dataset.token_bytes.shape == (python_dataset.vocab_size,)
  assert python_dataset.tokenizer.fingerprint == pipeline.open_tokenizer(python_config).fingerprint
