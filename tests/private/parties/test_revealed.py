"""What two parties reveal of an answer, and what a client does with it."""

import jax
import numpy as np
from private.commands import needs_engine
from private.models import LINEAR, config_of, make, tokens_of
from private.two_threads import both
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.parties import client, engine
from entropy_attn.private.parties.accuracy import reference_logits
from entropy_attn.private.parties.machine import Reference
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.wire import PeerLost
from entropy_attn.private.program import ops, reveal, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, NARROW, SERVER, SHARED, WIDE, Function, Step, Variable

pytestmark = needs_engine


def in_fixed_point(operation, x, ring):
  """What an operation makes of an array, by the reference in one ring."""
  apply = lambda a: operation(ops.Engine(one_square=True, diagonal=False), a)
  code = engine.compile_function(apply, [jax.ShapeDtypeStruct(x.shape, x.dtype)], ["SECRET"])
  machine = Reference(Settings(1, False, "EMP_Ferret"))
  machine.give("x", Variable(x.shape, SHARED), x)
  machine.run(Step(None, "test", Function(apply), ("x",), ("y",), ring), code)
  return machine.value("y")


@pytest.mark.parametrize("size", [41, 2000])
def test_the_likeliest_is_found_in_either_ring(size):
  x_V = np.random.default_rng(size).normal(0, 20, size).astype(np.float32)
  for ring in (NARROW, WIDE):
    assert in_fixed_point(reveal.Likeliest(), x_V, ring).tolist() == [np.argmax(x_V)]


def test_the_k_likeliest_are_found():
  x_V = np.random.default_rng(0).normal(0, 20, 1500).astype(np.float32)
  values, places = in_fixed_point(reveal.Top(40), x_V[None], WIDE)
  np.testing.assert_array_equal(places, np.argsort(-x_V)[:40])
  np.testing.assert_allclose(values, np.sort(x_V)[::-1][:40], atol=1e-4)


def test_two_parties_reveal_so_much_and_no_more():
  config, variables = make(LINEAR)
  fit = squares.exponential(5e-3, -16.0)
  model = weights_lib.fold(variables, config.model, spec_lib.transforms_for(config.model), (fit, fit))
  tokens = tokens_of(config)
  logits_V = reference_logits(model, tokens[None])[0, -1]
  specs = [model.spec.revealing("argmax"), model.spec.revealing("top_k", 5)]

  def run(connection, role, *given):
    session = Session(connection, role, specs[0], model.weights if role == SERVER else None, threads=1)
    for session.spec in specs:  # keys are made once for both
      yield session.run(len(tokens), *given)
      session.restart()

  served, (token, top) = both(lambda c: list(run(c, SERVER)), lambda c: list(run(c, CLIENT, tokens)))
  assert served == [None, None]
  assert token.dtype == np.int32 and token.tolist() == [np.argmax(logits_V)]
  np.testing.assert_array_equal(top[1], np.argsort(-logits_V)[:5])
  np.testing.assert_allclose(top[0], np.sort(logits_V)[::-1][:5], atol=0.01)


def spec_of(**revealed):
  config = config_of(LINEAR)
  fit = squares.exponential(5e-3, -16.0)
  spec = spec_lib.of_config(config.model, spec_lib.transforms_for(config.model), (fit, fit))
  return spec.revealing(**revealed)


def test_a_client_takes_or_draws_a_token_from_what_is_revealed():
  rng, logits = np.random.default_rng(0), np.zeros((1, 41), np.float32)
  logits[0, 7] = 3.0
  argmax, top, whole = spec_of(reveal="argmax"), spec_of(reveal="top_k", top_k=3), spec_of(reveal="logits")
  chosen = lambda spec, opened, temperature: client._chosen(
    spec, opened, rng, temperature=temperature, top_k=0, top_p=1.0
  )
  assert chosen(argmax, np.array([7], np.int32), 0.0) == 7
  three = np.array([[3.0, 2.5, 2.4], [7.0001, 3.9999, 21.0]], np.float32)  # in fixed point
  assert chosen(top, three, 0.0) == chosen(whole, logits, 0.0) == 7
  assert {chosen(top, three, 9.0) for _ in range(99)} == {7, 4, 21}
  assert len({chosen(whole, logits, 9.0) for _ in range(99)}) > 20
  for wrong in (-1, 41, 2**31 - 1):
    with pytest.raises(PeerLost, match="no token"):
      chosen(argmax, np.array([wrong], np.int32), 0.0)


def test_a_temperature_needs_logits():
  for revealed in ({"reveal": "top_k", "top_k": 3}, {"reveal": "logits"}):
    client._check_draws(0.8, 0, spec_of(**revealed))
  client._check_draws(0.0, 0, spec_of(reveal="argmax"))
  with pytest.raises(UserError, match="--temperature=0.8 draws from logits, and this server reveals .*--reveal=top_k"):
    client._check_draws(0.8, 0, spec_of(reveal="argmax"))
  client._check_draws(0.8, 3, spec_of(reveal="top_k", top_k=3))
  with pytest.raises(UserError, match="--top_k=4 draws from more than the 3 logits that this server reveals"):
    client._check_draws(0.8, 4, spec_of(reveal="top_k", top_k=3))
