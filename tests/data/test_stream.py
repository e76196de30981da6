"""Text as its tokens come: the same as of all at once, in whole characters, up to a stop string."""

import functools
import io
import pathlib
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.data.stream import TextStream

ALPHABET = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@functools.cache
def by_byte():
  """A tokenizer that has a token for each byte alone: every other character is of several."""
  tokenizer = tokenizers.Tokenizer(models.BPE(ALPHABET, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return opened("tokenizer.json", tokenizer.to_str().encode())


@functools.cache
def by_piece():
  """A SentencePiece model, whose decoder drops the space before the first token."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat on the mat é", "a dog is not a cat 日本"] * 20), model_writer=model,
    vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  return opened("tokenizer.model", model.getvalue())


def opened(name, content):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / name
    path.write_bytes(content)
    return tokenizer_lib.open_file(path)


def streamed(tokenizer, prompt, ids, stops=()):
  """The stream, and the pieces that it gave; it is stopped as a generation would be."""
  stream, pieces = TextStream(tokenizer.decode, prompt, stops), []
  for token in ids:
    pieces.append(stream.push(token))
    if stream.stopped:
      break
  pieces.append(stream.close())
  assert "".join(pieces) == stream.text
  return stream, pieces


TEXTS = st.text(st.sampled_from("ab é日本\n👩‍🚀"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 10))
def test_pieces_are_whole_characters_of_the_text_of_all_tokens(prompt, text, cut):
  (whole,) = by_byte().encode_batch([prompt + text])
  cut = min(cut, len(whole) - 1) or len(whole)  # anywhere, within characters too
  stream, pieces = streamed(by_byte(), whole[:cut], whole[cut:])
  assert by_byte().decode(whole[:cut]).rstrip("\ufffd") + stream.text == prompt + text
  assert "\ufffd" not in stream.text
  # After each token all that is whole has been said.
  for i in range(cut + 1, len(whole) + 1):
    said = "".join(pieces[: i - cut])
    assert (prompt + text).startswith(by_byte().decode(whole[:cut]).rstrip("\ufffd") + said)
    if not by_byte().decode(whole[:i]).endswith("\ufffd"):
      assert by_byte().decode(whole[:cut]).rstrip("\ufffd") + said == by_byte().decode(whole[:i])
  # And by a decoder that drops spaces at its start.
  (first,), (rest,) = by_piece().encode_batch(["the cat"]), by_piece().encode_batch([f"sat {text} on"])
  stream, _ = streamed(by_piece(), first, rest)
  assert "the cat" + stream.text == by_piece().decode([*first, *rest])
  assert stream.text.startswith(" sat")


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=14), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_it_stops_before_the_first_stop_string_that_is_complete(text, stops):
  prompt = [ALPHABET["c"]]
  ids = [ALPHABET[c] for c in text]
  stream, pieces = streamed(by_byte(), prompt, ids, stops)
  ends = [i for i in range(len(text) + 1) if any(stop in text[:i] for stop in stops)]
  if ends:
    expected = text[: min(text[: ends[0]].find(stop) for stop in stops if stop in text[: ends[0]])]
    assert (stream.text, stream.stopped, len(pieces)) == (expected, True, ends[0] + 1)
  else:
    assert (stream.text, stream.stopped) == (text, False)
  # Nothing is held longer than it may still become a stop string.
  for i in range(1, len(pieces) - 1):
    said = "".join(pieces[:i])
    held = text[len(said) : i]
    assert text[:i].startswith(said) and (not held or any(stop.startswith(held) for stop in stops))


def test_a_stop_string_that_begins_in_one_token_and_ends_in_another():
  decode = lambda ids: "".join(["x", "foo\n", "\nbar", "é\n\nq"][i] for i in ids)
  stream = TextStream(decode, [0], ["\n\n"])
  assert [stream.push(1), stream.push(2), stream.close()] == ["foo", "", ""]
  assert (stream.text, stream.stopped) == ("foo", True)
  stream = TextStream(decode, [0], ["\n\n", "q"])
  assert stream.push(3) == "é" and stream.stopped  # the first of two in one token


def test_bytes_that_are_no_character_are_shown_at_last():
  decode = lambda ids: bytes(ids).decode(errors="replace")
  stream = TextStream(decode, [65], [])
  assert [stream.push(b) for b in (0xE2, 0x82, 0x41, 0xE2)] == ["", "", "\ufffdA", ""]
  assert stream.close() == "\ufffd" and stream.text == "\ufffdA\ufffd"
