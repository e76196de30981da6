"""Tokenizers from every kind of file, and their mistakes."""

import io
import json
import re
import time

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece
import tokenizers

from entropy_attn.data import pipeline, tokenizer
from entropy_attn.errors import UserError
from tests.data.small_configs import make_config, of_files


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
  config = of_files(tmp_path, folder, data__packing="concat")
  config.data.tokenizer = str(sentencepiece_model)
  dataset = pipeline.prepare(config)
  opened = pipeline.open_tokenizer(config)
  assert (dataset.vocab_size, opened.end_id) == (300, 2)
  tokens = np.concatenate([dataset.train[i]["inputs"] for i in range(len(dataset.train))])
  assert (tokens == 2).any()
  assert "import" in opened.decode(dataset.train[0]["inputs"]) + opened.decode(tokens[:2000])


def test_another_vocabulary_size_is_refused(bpe, tmp_path, folder):
  config = of_files(tmp_path, folder, data__tokenizer=str(bpe))
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
  config = of_files(tmp_path, folder, data__packing="concat")
  config.data.tokenizer = str(tmp_path / "plain.json")
  with pytest.raises(UserError, match="concat needs an end-of-text token.*packing=per_file"):
    pipeline.prepare(config)


@pytest.mark.parametrize("name", ["none.json", "none.model", "a/b/c", "a b", "x" * 300 + " y"])
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


def _vocab_and_merges(bpe, folder):
  model = json.loads(bpe.read_text())["model"]
  folder.mkdir()
  (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
  return folder


@pytest.mark.parametrize("kind", ["json", "folder", "vocab and merges", "sentencepiece"])
def test_the_copy_in_a_runs_folder_is_the_same_tokenizer(bpe, sentencepiece_model, tmp_path, texts, kind):
  source = {"json": bpe, "folder": bpe.parent, "sentencepiece": sentencepiece_model}.get(kind)
  saved = tokenizers.Tokenizer.from_file(str(bpe))
  saved.enable_truncation(5)
  saved.save(str(bpe), pretty=True)  # another file with the same tokenizer in it
  opened = tokenizer.open_tokenizer(str(source or _vocab_and_merges(bpe, tmp_path / "old")))
  for copy in (tmp_path / "kept", tmp_path / "kept again"):
    copy.mkdir()
    name, content = opened.file
    (copy / name).write_bytes(content)
    kept = tokenizer.open_file(copy / name)
    assert kept.fingerprint == opened.fingerprint == tokenizer.open_tokenizer(str(copy / name)).fingerprint
    assert kept.file == opened.file
    assert kept.encode_batch(texts[:3]) == opened.encode_batch(texts[:3])
    assert (kept.vocab_size, kept.end_id) == (opened.vocab_size, opened.end_id)
    np.testing.assert_array_equal(kept.token_bytes, opened.token_bytes)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b"half of it"])
def test_a_damaged_copy_is_named(tmp_path, name, content):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=f"{name} (is not a|cannot be read)") as caught:
    tokenizer.open_file(tmp_path / name)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["json", "vocab and merges"])
def test_ids_beyond_the_number_of_entries_are_refused(bpe, tmp_path, folder, kind):
  spec = json.loads(bpe.read_text())
  last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
  spec["model"]["vocab"][last] = 410
  bpe.write_text(json.dumps(spec))
  source = bpe if kind == "json" else _vocab_and_merges(bpe, tmp_path / "old")
  config = of_files(tmp_path, folder, data__tokenizer=str(source))
  opened = tokenizer.open_tokenizer(str(source))
  assert (opened.entries, opened.vocab_size, len(opened.token_bytes)) == (400, 411, 411)
  for size in (400, 410, 412):
    config.model.vocab_size = size
    expected = (
      f"has 400 entries, but the largest id is 410 and model.vocab_size={size}: use --config.model.vocab_size=411"
    )
    with pytest.raises(UserError, match=expected):
      pipeline.prepare(config)
    with pytest.raises(UserError, match=expected):
      pipeline.open_tokenizer(config)
  config.model.vocab_size = 411
  assert pipeline.prepare(config).train.tokens([0]).max() < 411


def test_another_size_of_sentencepiece_is_refused(sentencepiece_model, tmp_path, folder):
  config = make_config(tmp_path, data__name="text_files", data__path=str(folder), model__vocab_size=311)
  config.data.tokenizer = str(sentencepiece_model)
  with pytest.raises(UserError, match="has 300 entries but model.vocab_size=311: use --config.model.vocab_size=300"):
    pipeline.prepare(config)


def test_an_unbroken_line_does_not_stop_the_training(tmp_path, texts, capsys):
  rng = np.random.default_rng(0)
  lines = ["".join(rng.choice(list("abcdefgh"), 300_000)), " " * 300_000, "x" * 300_000]
  started = time.monotonic()
  tokenizer.train([*texts, *lines], 600, tmp_path / "t.json")
  assert time.monotonic() - started < 15
  opened = tokenizer.open_file(tmp_path / "t.json")
  for line, ids in zip(lines, opened.encode_batch(lines), strict=True):
    assert opened.decode(ids) == line


@given(st.lists(st.tuples(st.sampled_from("ab \n"), st.integers(1, 25_000)), max_size=6))
def test_long_words_are_cut_and_nothing_is_lost(runs):
  text = "".join(character * count for character, count in runs)
  pieces = list(tokenizer._without_long_words(text))
  assert "".join(pieces) == text
  words = [word for piece in pieces for word in re.findall(r"\S+|\s+", piece)]
  assert max(map(len, words), default=0) <= 10_000
  if max(map(len, re.findall(r"\S+|\s+", text)), default=0) <= 10_000:
    assert pieces == [text]


def test_training_says_what_it_does(tmp_path, small, capfd):
  pipeline.prepare(make_config(tmp_path, data__name="text_files", data__path=str(small)))
  assert "training a byte-level BPE of 300 entries on the training text …" in capfd.readouterr().err
