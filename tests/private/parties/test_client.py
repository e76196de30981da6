"""What a client tells a server: the same whatever is wrong with its prompt, and whatever its result is."""

import base64
import socket
import threading

import numpy as np
from private.commands import needs_engine
from private.models import LINEAR, make
import pytest
import tokenizers
from waiting import PATIENCE

from entropy_attn.errors import UserError
from entropy_attn.private.parties import client, pair
from entropy_attn.private.parties.check import Impossible
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.wire import Connection, PeerEnded, PeerLost
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import squares
from entropy_attn.private.program.spec import Spec
from entropy_attn.private.program.types import SERVER

pytestmark = needs_engine
ENDED = {"end": "ended"}


def offer():
  """Of a model of 41 tokens and 12 positions."""
  config, _ = make(LINEAR)
  fit = squares.exponential(5e-3, -8.0)
  spec = spec_lib.of_config(config.model, spec_lib.transforms_for(config.model), (fit, fit))
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(41)}, unk_token="w0"))
  content = base64.b64encode(words.to_str().encode()).decode()
  return {"spec": spec.to_json(), "tokenizer": {"name": "tokenizer.json", "content": content}}


def told_by(ids, monkeypatch, *, tokens=1, run=None, offered=None, **options):
  """All that a client tells a server after its greeting; what it raises, or None; and what the server hears last."""
  said, heard, ends = {}, [], socket.socketpair()

  class Telling(Connection):
    def tell(self, message):
      said.setdefault(self, []).append(message)
      super().tell(message)

  monkeypatch.setattr(pair, "Connection", Telling)
  monkeypatch.setattr(Session, "run", run or (lambda *args, **options: pytest.fail("the server was asked")))

  def serve():
    try:
      with pair.session(ends[0], SERVER, offer=offered or offer()) as (session, _):
        while True:
          session.connection.hear()
    except (UserError, PeerLost) as lost:
      heard.append(lost)

  thread = threading.Thread(target=serve)
  thread.start()
  error = None
  try:
    client.generate(ends[1], lambda tokenizer: ids, tokens, **options)
  except (UserError, Impossible, PeerLost) as raised:
    error = raised
  thread.join(PATIENCE)
  (messages,) = [messages for messages in said.values() if messages[0]["role"] != SERVER]
  return messages[1:], error, heard[0]


@pytest.mark.parametrize(
  "ids,tokens,reason",
  [
    ([5, 9999], 1, "token 9999 is out of range: the model knows 0 to 40"),
    ([-1], 1, "token -1 is out of range"),
    ([5] * 20, 1, "do not fit the model's 12 positions"),
    ([5] * 7, 40, "ask for 6 or fewer"),
    ([], 1, "the prompt is empty"),
  ],
)
def test_a_prompt_that_does_not_fit_tells_the_server_nothing(ids, tokens, reason, monkeypatch):
  messages, error, heard = told_by(ids, monkeypatch, tokens=tokens)
  assert reason in str(error)
  assert messages == [{"offer": True}, ENDED]
  assert isinstance(heard, PeerEnded) and str(heard) == "it ended the session"


def test_a_temperature_that_the_server_does_not_serve_is_refused_before_anything_is_asked(monkeypatch):
  offered = offer()
  offered["spec"] = Spec.from_json(offered["spec"]).revealing("argmax").to_json()
  messages, error, _ = told_by([5], monkeypatch, offered=offered, temperature=0.8)
  assert "--temperature=0.8 draws from logits" in str(error) and messages == [{"offer": True}, ENDED]


def test_a_result_that_is_thrown_away_looks_to_the_server_like_one_that_is_not(monkeypatch):
  def impossible(*args, **options):
    raise Impossible(7, "tokens 3,4")

  def broken(*args, **options):
    raise PeerLost("a fault that knows of tokens 3,4")

  runs = [lambda *args, **options: np.zeros((1, 41)), impossible, broken]
  found = [told_by([3, 4], monkeypatch, run=run) for run in runs]
  assert [type(error) for _, error, _ in found] == [type(None), Impossible, PeerLost]
  for messages, _, heard in found:
    assert messages == [{"offer": True}, {"length": 2}, ENDED]
    assert isinstance(heard, PeerEnded)


@pytest.mark.parametrize(
  "change",
  [
    {"tokenizer": None},
    {"tokenizer": {"name": "../x", "content": ""}},
    {"tokenizer": {"name": ["x"], "content": ""}},
    {"tokenizer": {"name": "tokenizer.json", "content": "bm8="}},
    {"spec": "[" * 50_000},
    {"spec": '{"layers": 1}'},
    {"spec": '"x"'},
  ],
)
def test_what_a_server_offers_is_a_model_or_one_line(change, monkeypatch):
  messages, error, _ = told_by([5], monkeypatch, offered=offer() | change)
  assert isinstance(error, (UserError, PeerLost)) and len(str(error)) < 400
  assert messages == [{"offer": True}, ENDED]
