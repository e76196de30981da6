"""Windows judge every token once, with enough before it; strings of tokens are the text."""

import io

import numpy as np
import pytest

from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.errors import UserError
from entropy_attn.inspection import text


@pytest.mark.parametrize("context", [2, 3, 7, 16])
@pytest.mark.parametrize("length", [2, 3, 15, 16, 17, 23, 24, 25, 101])
@pytest.mark.parametrize("size", [1, 4])
def test_each_token_is_judged_once_and_has_half_a_context_before_it(length, context, size):
  windows = text.of_ids("a text", np.arange(100, 100 + length), context)
  seen, predicted, before = [], [], {}
  for batch in windows.batches(size):
    assert batch["inputs"].shape == (size, min(length, context))
    for row, col in np.argwhere(batch["judged"]):
      token = batch["inputs"][row, col]
      seen.append(token)
      before[token] = col
      if batch["weights"][row, col]:
        predicted.append(batch["targets"][row, col])
        assert predicted[-1] == token + 1
  assert seen == list(range(100, 100 + length))
  assert predicted == seen[1:]
  assert all(before[100 + i] >= min(i, context // 2) for i in range(length))
  assert sum(int(batch["real"].sum()) for batch in windows.batches(size)) == len(windows)


def test_sequences_of_a_sample_are_texts_of_their_own():
  sequences = np.arange(12).reshape(3, 4)
  (batch,) = text.of_sequences("a sample", sequences).batches(3)
  np.testing.assert_array_equal(batch["inputs"], sequences)
  assert batch["judged"].all()
  np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 0]] * 3)


def test_sequences_to_judge_are_spread_over_the_text():
  windows = text.of_ids("a text", np.arange(1000), 16)
  found = windows.spread(5, 8)
  assert found.shape == (5, 8) and found[0, 0] == 0 and found[-1, 0] == 1000 - 16
  assert np.diff(found, axis=1).min() == np.diff(found, axis=1).max() == 1
  assert text.of_ids("a text", np.arange(3), 16).spread(5, 8).shape == (1, 3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "t.json"
  tokenizer_lib.train(["def f(x):\n  return x  # naïve\n" * 20], 270, path)
  return tokenizer_lib.open_file(path)


@pytest.mark.parametrize(
  "written", ["def f(x):\n\treturn x", "naïve 👩‍👩‍👧 שלום é", "\ufffd\u200b\r\n<script>", "日本語\x00"]
)
def test_the_strings_of_tokens_are_the_text(tokenizer, written):
  (ids,) = tokenizer.encode_batch([written])
  found = text.strings(tokenizer, ids)
  assert len(found) == len(ids) and "".join(found) == written


def test_strings_of_a_text_cut_within_a_character_end_well(tokenizer):
  (ids,) = tokenizer.encode_batch(["ab👩"])
  found = text.strings(tokenizer, ids[:-1])
  assert len(found) == len(ids) - 1 and "".join(found).startswith("ab")


def test_strings_of_a_sentencepiece_like_tokenizer_keep_their_spaces():
  """Such a decoder drops the space in front of the first token that it is given."""
  pieces = ["▁a", "▁b", "c", "▁d"]
  tokenizer = tokenizer_lib.Tokenizer(
    vocab_size=4, end_id=None, fingerprint="", file=("", b""), encode_batch=None,
    decode=lambda ids: "".join(pieces[i] for i in ids).replace("▁", " ").removeprefix(" "),
  )  # fmt: skip
  assert "".join(text.strings(tokenizer, [0, 1, 2, 3])) == "a bc d"


def test_what_is_no_text_is_said(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  with pytest.raises(UserError, match=r"--text=.*a.txt cannot be read: No such file or directory"):
    text.read(path)
  with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
    text.read(tmp_path)
  path.write_bytes(b"")
  with pytest.raises(UserError, match=r"a.txt is empty"):
    text.read(path)
  path.write_bytes(b"caf\xe9")
  with pytest.raises(UserError, match=r"a.txt is not UTF-8"):
    text.read(path)
  path.write_text("café", encoding="utf-16")
  assert text.read(path) == "café"
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("naïve".encode())))
  assert text.read(text.pathlib.Path("-")) == "naïve"
  for count in (0, 1):
    with pytest.raises(UserError, match=rf"a text has {count} tokens?: two or more"):
      text.of_ids("a text", [5] * count, 16)
