"""Text from a model in the clear, one token after the other, with the entropies of the heads behind each.

Letters in array names: L layers, H heads, P padded prompt length, V vocabulary.
"""

from collections.abc import Callable, Sequence
import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from entropy_attn import cache as cache_lib
from entropy_attn import sampling
from entropy_attn.cache import Cache
from entropy_attn.data.stream import TextStream
from entropy_attn.errors import UserError
from entropy_attn.model import GPT

_SHORTEST = 8  # the prompt is padded to a power of two from here on, so that few lengths are compiled


class Predicted(NamedTuple):
  """What a model says of the token after those that it has read.

  Attributes:
    logits_V: float32.
    entropy_LxH: of the attention of the last token read, by which the next is predicted: nats, float32.
  """

  logits_V: np.ndarray
  entropy_LxH: np.ndarray


class Decoder:
  """A model that reads a prompt in one forward, and then a token at a time, with a key/value cache.

  Attributes:
    model: its `run.pretrained.Pretrained`.
    positions: the tokens that it can read: config.model.context_length.
    compile_seconds: what compiling has taken so far.
  """

  def __init__(self, model):
    self.model, self.positions = model, model.config.model.context_length
    self.compile_seconds = 0.0
    self._gpt = GPT(model.config)
    self._variables = jax.device_put(model.variables)
    self._compiled = set()

  def read(self, ids: Sequence[int]) -> tuple[Predicted, Cache]:
    """Reads a prompt.

    Raises:
      UserError: for one that is empty, too long, or has unknown ids.
    """
    ids = list(ids)
    sampling.check_prompt(ids, self.model.config.model.vocab_size)
    if len(ids) > self.positions:
      raise UserError(
        f"the prompt has {len(ids):,} tokens, more than the model's {self.positions:,} positions: shorten it"
      )
    P = min(max(_SHORTEST, 1 << (len(ids) - 1).bit_length()), self.positions)
    tokens_1xP = np.zeros((1, P), np.int32)
    tokens_1xP[0, : len(ids)] = ids
    return self._run(_read, tokens_1xP, np.int32(len(ids)))

  def advance(self, token: int, cache: Cache) -> tuple[Predicted, Cache]:
    """Reads one more token; the cache given is used up.

    The caller counts: beyond `positions` the result means nothing.
    """
    return self._run(_advance, np.int32(token), cache)

  def _run(self, step, *arguments) -> tuple[Predicted, Cache]:
    program = (step, np.shape(arguments[0]))
    if program not in self._compiled:
      started = time.monotonic()
      step.lower(self._gpt, self._variables, *arguments).compile()
      self.compile_seconds += time.monotonic() - started
      self._compiled.add(program)
    logits_V, entropy_LxH, cache = step(self._gpt, self._variables, *arguments)
    return Predicted(*jax.device_get((logits_V, entropy_LxH))), cache


@functools.partial(jax.jit, static_argnums=0)
def _read(gpt: GPT, variables, tokens_1xP: jax.Array, count: jax.Array):
  nothing = cache_lib.empty(gpt.config, size=0)
  return _predict(gpt, variables, tokens_1xP, count, nothing, cache_lib.empty(gpt.config))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _advance(gpt: GPT, variables, token: jax.Array, cache: Cache):
  return _predict(gpt, variables, token.reshape(1, 1), 1, cache, cache)


def _predict(gpt: GPT, variables, tokens_1xT, count, before: Cache, cache: Cache):
  """Logits [V] and entropies [L, H] of the count-th of T tokens after `before`, and `cache` with what they add."""
  x_1xTxD, out = gpt.apply(variables, tokens_1xT, cache=before, method="features")
  last = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=count - 1, slice_size=1)
  logits_1x1xV = gpt.apply(variables, last(x_1xTxD, axis=1), method="logits")
  entropy_LxH = last(out["entropy"], axis=2)[:, 0, 0]
  return logits_1x1xV[0, 0], entropy_LxH, cache.extended(out, count)


def generate(
  decoder: Decoder,
  ids: Sequence[int],
  tokens: int,
  *,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int = 0,
  stops: Sequence[str] = (),
  on_text: Callable[[str], None] = lambda text: None,
) -> dict:
  """Goes on from a prompt: the same tokens as `private.generate` finds, up to fixed point's error.

  Args:
    ids: the prompt's.
    tokens: how many at most.
    temperature, top_k, top_p: see `sampling.next_token`.
    seed: of the drawing.
    stops: texts of which the first to be complete ends the generation.
    on_text: called with each piece of new text, in whole characters.

  Returns:
    prompt_ids, ids and text, without the end-of-text token or stop string that ended it;
    tokens: of each token its id, the text that it added, logprob (nats, by the model's own softmax, without temperature
      and cuts) and entropy_LxH (nats) of the heads' attention when it was predicted;
    ended: 'end_of_text', 'stop', 'tokens', or 'positions' where the model can read no more;
    seconds: of the prompt, and of the tokens after the first, without those of compile;
    tokens_per_second: after the first; None where there is no other.

  Raises:
    UserError: for a prompt that the model cannot read, or logits that are not finite.
  """
  tokenizer, rng = decoder.model.tokenizer, np.random.default_rng(seed)
  ids, stream, found, ended = list(ids), TextStream(tokenizer.decode, ids, stops), [], "tokens"
  clock = _Clock(decoder)
  predicted, cache = decoder.read(ids)
  prompt_seconds = clock.lap()
  while True:
    token = _chosen(predicted, rng, len(found), temperature=temperature, top_k=top_k, top_p=top_p)
    text = "" if token == tokenizer.end_id else stream.push(token)
    found.append(_described(token, text, predicted))
    on_text(text)
    if token == tokenizer.end_id or stream.stopped:
      ended = "stop" if stream.stopped else "end_of_text"
      break
    if len(found) == tokens:
      break
    if len(ids) + len(found) > decoder.positions:
      ended = "positions"
      break
    predicted, cache = decoder.advance(token, cache)
  on_text(stream.close())
  seconds = clock.lap()
  return {
    "prompt_ids": ids,
    "ids": [one["id"] for one in found],
    "text": stream.text,
    "tokens": found,
    "ended": ended,
    "seconds": {"prompt": prompt_seconds, "tokens": seconds, "compile": clock.compiled},
    "tokens_per_second": (len(found) - 1) / seconds if len(found) > 1 else None,
  }


class _Clock:
  """Seconds since the last look, without what a decoder compiled; that is in `compiled`."""

  def __init__(self, decoder: Decoder):
    self.compiled = 0.0
    self._decoder, self._then, self._compiled = decoder, time.monotonic(), decoder.compile_seconds

  def lap(self) -> float:
    """Seconds."""
    now, compiled = time.monotonic(), self._decoder.compile_seconds
    compiling = compiled - self._compiled
    seconds, self.compiled = now - self._then - compiling, self.compiled + compiling
    self._then, self._compiled = now, compiled
    return seconds


def _chosen(predicted: Predicted, rng: np.random.Generator, count: int, **how) -> int:
  try:
    return sampling.next_token(predicted.logits_V, rng, **how)
  except ValueError as error:
    raise UserError(f"{error} after {count} tokens: the model has diverged, or is damaged") from error


def _described(token: int, text: str, predicted: Predicted) -> dict:
  logits_V = predicted.logits_V.astype(np.float64)
  most = logits_V.max()
  logprob = logits_V[token] - most - np.log(np.exp(logits_V - most).sum())
  return {"id": token, "text": text, "logprob": float(logprob), "entropy_LxH": predicted.entropy_LxH.tolist()}
