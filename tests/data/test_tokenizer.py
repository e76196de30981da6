"""Tokenizers from every kind of file, and their mistakes."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from entropy_attn.data import pipeline, tokenizer
from entropy_attn.errors import UserError
from tests.data.conftest import make_config


@pytest.fixture
def bpe(tmp_path, texts):
  path = tmp_path / "bpe" / "tokenizer.json"
  path.parent.mkdir()
  tokenizer.train(texts, 400, path)
  return path


@pytest.fixture
def sentencepiece_model(tmp_path, texts):
  path, model = tmp_path / "books.model", io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter("\n".join(texts).splitlines()[:2000]), model_writer=model, vocab_size=300,
      model_type="bpe", minloglevel=2, bos_id=-1, eos_id=-1, pad_id=0, unk_id=1, user_defined_symbols="<D>",
  )  # fmt: skip
  path.write_bytes(model.getvalue())
  return path


def test_training_is_deterministic_and_lossless(bpe, tmp_path, texts):
  tokenizer.train(texts, 400, tmp_path / "again.json")
  assert (tmp_path / "again.json").read_bytes() == bpe.read_bytes()
  opened = tokenizer.open_tokenizer(str(bpe))
  assert (opened.vocab_size, opened.end_id, opened.dtype) == (400, 0, np.uint16)
  for text in (texts[0], "naïve 🙂\n\n\tif x:\r\n"):
    assert opened.decode(opened.encode_batch([text])[0]) == text


def test_saved_truncation_and_padding_are_off(bpe, texts):
  saved = tokenizers.Tokenizer.from_file(str(bpe))
  saved.enable_truncation(5)
  saved.enable_padding(length=9)
  saved.save(str(bpe))
  assert len(tokenizer.open_tokenizer(str(bpe)).encode_batch([texts[0]])[0]) > 100


def test_folder_and_vocab_with_merges_agree_with_json(bpe, tmp_path, texts):
  model = json.loads(bpe.read_text())["model"]
  old = tmp_path / "old"
  old.mkdir()
  (old / "vocab.json").write_text(json.dumps(model["vocab"]))
  (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
  expected = tokenizer.open_tokenizer(str(bpe))
  for found in (tokenizer.open_tokenizer(str(bpe.parent)), tokenizer.open_tokenizer(str(old))):
    assert found.encode_batch([texts[1]]) == expected.encode_batch([texts[1]])
    assert (found.vocab_size, found.end_id) == (expected.vocab_size, expected.end_id)


def test_sentencepiece_is_packed(sentencepiece_model, tmp_path, folder):
  config = make_config(tmp_path / "built", data__name="text_files", data__path=str(folder), data__packing="concat")
  config.data.tokenizer = str(sentencepiece_model)
  dataset = pipeline.prepare(config)
  opened = pipeline.open_tokenizer(config)
  assert (dataset.vocab_size, opened.end_id) == (300, 2)
  tokens = np.concatenate([dataset.train[i]["inputs"] for i in range(len(dataset.train))])
  assert (tokens == 2).any()
  assert "import" in opened.decode(dataset.train[0]["inputs"]) + opened.decode(tokens[:2000])


def test_another_vocabulary_size_is_refused(bpe, tmp_path, folder):
  config = make_config(tmp_path / "built", data__name="text_files", data__path=str(folder), data__tokenizer=str(bpe))
  with pytest.raises(UserError, match="has 400 entries but model.vocab_size=300: use --config.model.vocab_size=400"):
    pipeline.prepare(config)


def test_concat_needs_an_end_of_text_token(tmp_path, folder):
  plain = tokenizers.Tokenizer(tokenizers.models.BPE())
  plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  text = (p.read_text() for p in sorted(folder.rglob("*.txt")))
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
  plain.train_from_iterator(text, trainer)
  plain.save(str(tmp_path / "plain.json"))
  config = make_config(tmp_path / "built", data__name="text_files", data__path=str(folder), data__packing="concat")
  config.data.tokenizer = str(tmp_path / "plain.json")
  with pytest.raises(UserError, match="concat needs an end-of-text token.*packing=per_file"):
    pipeline.prepare(config)


@pytest.mark.parametrize("name", ["none.json", "none.model", "a/b/c", "a b"])
def test_missing_files_are_named(name):
  with pytest.raises(UserError, match=f"'{name}' does not exist"):
    tokenizer.open_tokenizer(name)


def test_broken_files_are_named(tmp_path):
  for name in ("broken.json", "broken.model"):
    (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is not a"):
      tokenizer.open_tokenizer(str(tmp_path / name))
  with pytest.raises(UserError, match="holds neither tokenizer.json nor vocab.json"):
    tokenizer.open_tokenizer(str(tmp_path))
