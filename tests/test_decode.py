"""A model read a token at a time, with a cache, is the model: its tokens, probabilities and entropies."""

import collections
import functools
import pathlib
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
from private.models import ARCHITECTURES, make
import pytest
import tokenizers

from entropy_attn import config as config_lib
from entropy_attn import decode
from entropy_attn.data import tokenizer as tokenizer_lib
from entropy_attn.errors import UserError
from entropy_attn.model import GPT

S, V = 12, 41  # of these models
ALL = config_lib.ARCHITECTURES | {
  name: ARCHITECTURES[name]
  for name in ("SM+σReparam", "SM+LN+G+VRes+FFN(−1)", "SM+VRes+ScFuFFN(−1)", "SM(t)+ScFuFFN", "SM(log t_i)+LN+G")
}
Model = collections.namedtuple("Model", "config variables tokenizer")


def words(end=False):
  """A tokenizer of 41 words, of which the last may be the end of the text."""
  names = [f"w{i} " for i in range(V)]
  names[-1] = tokenizer_lib.END_OF_TEXT if end else names[-1]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, names[0]))
  tokenizer.decoder = tokenizers.decoders.Fuse()
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save(f"{folder}/tokenizer.json")
    return tokenizer_lib.open_file(pathlib.Path(folder, "tokenizer.json"))


def decoder(fields=ALL["ereg"], family="codeparrot", end=False, **size):
  config, variables = make(fields, family, **size)
  return decode.Decoder(Model(config, variables, words(end)))


def full(model, ids):
  """(log-probabilities [V], entropies [L, H]) after `ids`, by one forward of all of them and padding behind."""
  padded_1xS = np.zeros((1, S), np.int32)
  padded_1xS[0, : len(ids)] = ids
  logits, out = forward(GPT(model.config), model.variables, padded_1xS)
  return np.asarray(jax.nn.log_softmax(logits[0, len(ids) - 1])), np.asarray(out["entropy"])[:, 0, len(ids) - 1]


forward = jax.jit(lambda gpt, variables, tokens: gpt.apply(variables, tokens), static_argnums=0)


# The rest of them takes a minute: every fast one has several things at once.
FAST = ("ereg", "SM+VRes+ScFuFFN(−1)")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in ALL])
def test_tokens_probabilities_and_entropies_are_those_of_forwards_without_a_cache(name):
  d = decoder(ALL[name])
  found = decode.generate(d, [3, 1, 4, 1, 5], 99)
  ids = list(found["prompt_ids"])
  for token in found["tokens"]:
    logprobs_V, entropy_LxH = full(d.model, ids)
    assert token["id"] == np.argmax(logprobs_V)
    assert token["logprob"] == pytest.approx(logprobs_V[token["id"]], abs=1e-5)
    np.testing.assert_allclose(token["entropy_LxH"], entropy_LxH, atol=1e-5)
    ids.append(token["id"])
  # As many as fit: the last one need not be read.
  assert len(ids) == S + 1 and found["ended"] == "positions" and found["ids"] == ids[5:]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=S), st.data())
def test_any_prompt_read_in_any_two_ways_says_the_same(ids, data):
  """In one forward with padding behind, or a part of it a token at a time: a token never sees a later one."""
  d, start = shared(), data.draw(st.integers(1, len(ids)))
  found, cache = d.read(ids[:start])
  for token in ids[start:]:
    found, cache = d.advance(token, cache)
  assert int(cache.length[0]) == len(ids)
  logprobs_V, entropy_LxH = full(d.model, ids)
  np.testing.assert_allclose(found.logits_V - np.logaddexp.reduce(found.logits_V), logprobs_V, atol=1e-5)
  np.testing.assert_allclose(found.entropy_LxH, entropy_LxH, atol=1e-5)


@functools.cache
def shared():
  return decoder(end=True)


def test_a_seed_draws_the_same_again_and_nothing_is_compiled_twice():
  d = shared()
  draw = lambda seed, **how: decode.generate(d, [3, 1, 4], 9, temperature=3.0, seed=seed, **how)["ids"]
  first, compiled = draw(0), decode._advance._cache_size()
  assert draw(0) == first
  assert len({tuple(draw(seed)) for seed in range(5)}) > 1
  assert draw(0, top_k=1) == decode.generate(d, [3, 1, 4], len(draw(0, top_k=1)))["ids"]
  assert decode._advance._cache_size() == compiled


def test_text_comes_in_pieces_and_ends_before_a_stop_string_or_the_end_of_the_text():
  d, pieces = shared(), []
  found = decode.generate(d, [3, 1, 4], 6, on_text=pieces.append)
  assert found["ended"] == "tokens" and "".join(pieces) == found["text"] == "".join(t["text"] for t in found["tokens"])
  assert found["text"] == "".join(f"w{i} " for i in found["ids"]) and found["tokens_per_second"] > 0
  stop = f"{found['ids'][1]} w{found['ids'][2]}"  # within two tokens
  short = decode.generate(d, [3, 1, 4], 6, stops=[stop])
  cut = found["text"].index(stop)
  assert (short["text"], short["ended"]) == (found["text"][:cut], "stop")
  assert short["ids"] == found["ids"][: len(short["ids"])] and len(short["ids"]) <= 3
  for seed in range(99):
    drawn = decode.generate(d, [3, 1, 4], 9, temperature=9.0, seed=seed)
    if drawn["ended"] == "end_of_text":
      break
  assert drawn["ids"][-1] == V - 1 and tokenizer_lib.END_OF_TEXT not in drawn["text"]


def test_what_a_model_cannot_read_is_one_line():
  d = shared()
  for ids, message in (
    ([], "the prompt is empty"),
    ([V], f"token {V} is out of range: the model knows 0 to {V - 1}"),
    ([1] * (S + 1), f"the prompt has {S + 1} tokens, more than the model's {S} positions: shorten it"),
  ):
    with pytest.raises(UserError, match=message):
      decode.generate(d, ids, 1)
  assert len(decode.generate(d, [1] * S, 5)["ids"]) == 1
  bad = jax.tree.map(np.array, d.model.variables)
  bad["params"]["ln_f"]["scale"][:] = np.nan
  with pytest.raises(UserError, match="not finite after 0 tokens: the model has diverged, or is damaged"):
    decode.generate(decode.Decoder(d.model._replace(variables=bad)), [1], 1)
