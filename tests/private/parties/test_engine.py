"""The engine itself: the same steps by two parties, by the reference in fixed point, and on open values."""

import dataclasses
import importlib.util
import math
import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
from private.commands import needs_engine
from private.models import ARCHITECTURES, LINEAR, logits_of, make, slow_but, tokens_of
from private.two_threads import both
import pytest
from waiting import PATIENCE

from entropy_attn.errors import UserError
from entropy_attn.private.parties import engine, pair
from entropy_attn.private.parties.accuracy import reference_logits
from entropy_attn.private.parties.check import Impossible
from entropy_attn.private.parties.machine import Reference
from entropy_attn.private.parties.party import Party
from entropy_attn.private.parties.session import Session
from entropy_attn.private.parties.shares import packed, unpacked
from entropy_attn.private.parties.wire import Connection, PeerLost
from entropy_attn.private.program import build, operations, ops, ranges, softmax, squares, types
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.spec import STOCK, Settings
from entropy_attn.private.program.types import CLIENT, NARROW, SERVER, SHARED, WIDE, Function, Step, Variable

pytestmark = needs_engine
CHAIN = squares.exponential(5e-3, -16.0)


@pytest.fixture(scope="module", autouse=True)
def loaded():
  engine.core()


def private(name, **changes):
  """(config, variables, model) with all transforms but `changes`."""
  config, variables = make(ARCHITECTURES.get(name, LINEAR))
  transforms = changes.pop("transforms", None)
  transforms = transforms or dataclasses.replace(spec_lib.transforms_for(config.model), **changes)
  chosen = (CHAIN, CHAIN) if transforms.exponential == "squares" else ()
  return config, variables, weights_lib.fold(variables, config.model, transforms, chosen)


def sessions_of(model, tokens):
  """Both parties' sessions after one inference, in threads of this process: for what they count."""
  sessions = {}

  def serve(connection):
    sessions[SERVER] = Session(connection, SERVER, model.spec, model.weights, threads=1)
    assert sessions[SERVER].run(len(tokens)) is None  # the server learns no result

  def ask(connection):
    sessions[CLIENT] = Session(connection, CLIENT, model.spec, threads=1)
    sessions[CLIENT].run(len(tokens), tokens)

  assert both(serve, ask) == [None, None]
  return sessions


def by_two_processes(model, tokens_SxN, *, seeds, **options):
  """The client's logits of each sequence; what goes wrong with them tells their seeds and shapes."""
  where = f"tests' models.tokens_of, seeds {seeds}, shape {tokens_SxN.shape}"
  return pair.two_processes(model, tokens_SxN, threads=1, show=False, origin=where, **options)[CLIENT]["logits"]


@pytest.mark.parametrize(
  "name", slow_but(["SM+LN+G"], ["SM+LN+G", "SM+LN+R", "SM(t_i)+ScFuFFN", "SM+VRes+ScFuFFN(−1)"])
)
def test_two_parties_give_the_models_logits(name):
  config, variables, model = private(name)
  seeds = (0, 1, 2)
  tokens_SxN = np.stack([tokens_of(config, seed) for seed in seeds])
  gelu = 0.03 if config.model.activation == "gelu" else 0.0  # its own error, through two layers
  found = by_two_processes(model, tokens_SxN, seeds=seeds)
  for seed, logits, tokens in zip(seeds, found, tokens_SxN, strict=True):
    assert logits.shape == (1, config.model.vocab_size)
    true, what = logits_of(config, variables, tokens)[-1:], f"{name}, seed {seed}: {tokens.tolist()}"
    np.testing.assert_allclose(logits, true, atol=0.02 + gelu, err_msg=what)


@pytest.mark.slow
def test_the_stock_program_runs_as_it_was_written():
  config, variables, model = private("SM+LN+G", transforms=STOCK)
  tokens = tokens_of(config, length=6)
  (logits,) = by_two_processes(model, tokens[None], seeds=(0,))
  np.testing.assert_allclose(logits, logits_of(config, variables, tokens), atol=0.06)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"softmax_ring": "64", "one_check": False},
    {"diagonal": True, "division": "late", "maximum": "fours"},
    {"embedding": "one_hot", "one_product": False, "last_position": False, "join_heads": False},
    {"eliminate_ffns": False, "clamp": False, "checked": False, "join_queries": False},
    {"exponential": "engine", "softmax_ring": "64", "division": "early", "triangle": False},
  ],
)
def test_without_some_transforms_too(changes):
  config, variables, model = private("SM(t_i)+ScFuFFN", **changes)
  tokens = tokens_of(config)
  logits = reference_logits(model, tokens[None])[0]
  np.testing.assert_allclose(logits, logits_of(config, variables, tokens), atol=0.04)


def test_going_on_from_shared_caches_equals_the_whole():
  config, variables, model = private("SM(t_i)+ScFuFFN")
  tokens, past, logits = tokens_of(config), 0, []
  machine, compiler = Reference(Settings.of(model.spec)), engine.Compiler(model.spec)
  for part in (tokens[:8], tokens[8:9], tokens[9:12]):
    built = build.build(model.spec, len(part), past=past)
    inputs = build.server_inputs(model.weights, len(part), past) | build.client_inputs(model.spec, part)
    for name in built.inputs.keys() & inputs.keys():
      machine.give(name, built.inputs[name], inputs[name])
    for step, code in zip(built.steps, compiler.program(built), strict=True):
      machine.run(step, code)
    logits.append(machine.value("logits"))
    for name in built.kept:
      machine.rename(name, f"past.{name}")
    past += len(part)
  true = logits_of(config, variables, tokens)
  np.testing.assert_allclose(np.concatenate(logits), true[[7, 8, 11]], atol=0.02)


def test_the_reference_computes_what_two_parties_do():
  config, _, model = private("SM(t)+ScFuFFN")
  tokens_SxN = np.stack([tokens_of(config, seed) for seed in range(2)])
  together = by_two_processes(model, tokens_SxN, seeds=(0, 1), every_position=True)
  np.testing.assert_allclose(together, reference_logits(model, tokens_SxN), atol=0.01)


def test_bytes_and_rounds_are_those_of_the_wire_and_the_same_each_time():
  config, _, model = private("SM(t_i)+ScFuFFN")
  runs = []
  for seed in (0, 1):  # whatever the prompt
    sessions = sessions_of(model, tokens_of(config, seed))
    for one, other in ((SERVER, CLIENT), (CLIENT, SERVER)):
      received = sessions[other].connection.counts().received
      assert sum(r.sent for r in sessions[one].records) == pytest.approx(received, abs=1000)  # less the first words
    runs.append({role: sessions[role].records for role in sessions})
  total = [sum(r.sent for role in run for r in run[role]) for run in runs]
  assert abs(total[0] - total[1]) < 0.02 * total[0]
  rounds = [max(sum(r.rounds for r in run[role]) for role in run) for run in runs]
  assert abs(rounds[0] - rounds[1]) < 0.05 * rounds[0]


def test_parties_with_different_programs_part_before_anything_is_shared():
  config, _, model = private("SM(t_i)+ScFuFFN")
  other = dataclasses.replace(model.spec, transforms=dataclasses.replace(model.spec.transforms, clamp=False))
  counted = {}

  def serve(connection):
    session = Session(connection, SERVER, other, model.weights, threads=1)
    try:
      session.run(4)
    finally:
      counted[SERVER] = connection.counts()

  def ask(connection):
    session = Session(connection, CLIENT, model.spec, threads=1)
    try:
      session.run(4, tokens_of(config, length=4))
    finally:
      counted[CLIENT] = connection.counts()

  for error in both(serve, ask):
    assert isinstance(error, (UserError, PeerLost))
  assert any("would run another program" in str(error) for error in both(serve, ask))
  assert all(count.sent == count.received == 0 for count in counted.values())


def scaled(name, part, factor):
  """(config, model, its logits) with one array of the variables so many times as large."""
  config, variables, _ = private(name)
  params = variables["params"]
  where = params["blocks"]["q"] if part == "kernel" else params
  where[part] = where[part] * factor
  model = weights_lib.fold(variables, config.model, spec_lib.transforms_for(config.model), (CHAIN, CHAIN))
  return config, model, logits_of(config, variables, tokens_of(config))


@pytest.mark.parametrize("name,part", [("SM+ScFuFFN", "token_embedding"), ("SM+LN+R", "kernel")])
def test_numbers_out_of_range_are_refused_before_running_or_after_it(name, part):
  refused = set()
  for factor in (1e3, 3e6, 1e8, 1e12):
    config, model, true = scaled(name, part, factor)
    tokens = tokens_of(config)[None]
    try:
      ranges.check(ranges.measure(model, tokens))
    except UserError:
      refused.add("before")
    else:
      logits = reference_logits(model, tokens)[0]
      np.testing.assert_allclose(logits, true, atol=1e-3 * np.abs(true).max() + 0.02)
    if factor > 1e9:  # were it not for the ranges
      with pytest.raises(Impossible, match="are none that a softmax or a LayerNorm gives"):
        reference_logits(model, tokens)
      refused.add("after")
  assert refused == {"before", "after"}


def test_two_parties_refuse_what_overflowed():
  config, model, _ = scaled("SM+ScFuFFN", "token_embedding", 1e8)
  with pytest.raises(UserError, match="the client's process failed: .*are none that a softmax or a LayerNorm gives"):
    by_two_processes(model, tokens_of(config)[None], seeds=(0,))


@pytest.mark.slow
def test_an_impossible_result_tells_what_is_needed_to_look_into_it():
  config, variables, _ = private("SM+ScFuFFN")
  table, seeds = variables["params"]["token_embedding"], (0, 1, 2)
  tokens_SxN = np.stack([tokens_of(config, seed) for seed in seeds]) % 40
  table[40] *= 1e12
  tokens_SxN[1, -1] = 40  # the last position of this sequence alone leaves the range
  model = weights_lib.fold(variables, config.model, spec_lib.transforms_for(config.model), (CHAIN, CHAIN))
  with pytest.raises(UserError) as error:
    by_two_processes(model, tokens_SxN, seeds=seeds)
  text = str(error.value)
  for part in (
    "sequence 1 of 3", "seeds (0, 1, 2), shape (3, 12)", "sequences 0, 2 were right",
    "12 tokens after 0, 2 layers, 2 heads, width 16, vocabulary 41", "exp_iterations=1", "two parties of 1 threads",
    "after 1 runs of this session", "tokens " + ",".join(map(str, tokens_SxN[1])),
  ):  # fmt: skip
    assert part in text, (part, text)


def on_reference(fn, *arrays, ring=WIDE):
  """fn by the reference, in one ring."""
  settings = Settings(1, False, "EMP_Ferret")
  shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
  code = engine.compile_function(fn, shapes, ["SECRET"] * len(arrays))
  machine, names = Reference(settings), tuple(f"x{i}" for i in range(len(arrays)))
  for name, array in zip(names, arrays, strict=True):
    machine.give(name, Variable(array.shape, SHARED), array)
  machine.run(Step(None, "test", Function(fn), names, ("y",), ring), code)
  return machine, machine.value("y")


def test_a_square_by_the_engines_exponential_is_one():
  x = np.linspace(-1.2, 1.2, 400, dtype=np.float32)
  square = ops.Engine(one_square=True, diagonal=False).square
  _, y = on_reference(square, x)
  np.testing.assert_allclose(y, x * x, atol=3e-5)


def test_a_diagonal_product_scales_rows():
  rng = np.random.default_rng(0)
  x, factor = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.uniform(0.1, 2, (2, 5)).astype(np.float32)
  for diagonal in (True, False):
    _, y = on_reference(ops.Engine(one_square=True, diagonal=diagonal).scale_rows, x, factor)
    np.testing.assert_allclose(y, x * factor[..., None], atol=1e-4)


def test_values_cross_from_ring_to_ring_and_back():
  x = np.linspace(-3, 3, 999, dtype=np.float32)
  to_narrow = ops.Engine(one_square=True, diagonal=False)
  machine, _ = on_reference(lambda a: to_narrow.halve(a, 0, True), x)

  def then(fn, ring):
    code = engine.compile_function(fn, [jax.ShapeDtypeStruct(x.shape, x.dtype)], ["SECRET"])
    machine.run(Step(None, "test", Function(fn), ("y",), ("y",), ring), code)

  then(lambda a: jnp.maximum(a, -1.0), NARROW)
  np.testing.assert_allclose(machine.value("y"), np.maximum(x, -1), atol=1e-4)
  for bits in types.LOWERINGS:
    then(lambda a, bits=bits: to_narrow.lower(a, bits), WIDE)
  np.testing.assert_allclose(machine.value("y"), np.maximum(x, -1), atol=2e-4)


@pytest.mark.parametrize(
  "operation,exact,error",
  [
    (operations.Relu(), lambda h: np.maximum(h, 0), 2e-4),
    (operations.GeluBySquares(squares.gelu_tail()), lambda h: h * 0.5 * (1 + np.vectorize(math.erf)(h / 2**0.5)), 5e-3),
  ],
  ids=["relu", "gelu"],
)
def test_an_activation_in_the_narrow_ring_is_one_for_all_that_has_room_there(operation, exact, error):
  """As far as the range check lets numbers reach, and with none at random: a product that overflows is off by some."""
  h = np.concatenate([np.linspace(-6, 6, 20_000), [-8190, -2000, -50, 50, 2000, 8190]]).astype(np.float32)
  engine_ops = ops.Engine(one_square=True, diagonal=False)
  machine, _ = on_reference(lambda a: softmax.Narrowed()(engine_ops, a), h)

  def then(step_operation, ring):
    fn = lambda a: step_operation(engine_ops, a)
    code = engine.compile_function(fn, [jax.ShapeDtypeStruct(h.shape, h.dtype)], ["SECRET"])
    machine.run(Step(None, "test", Function(fn), ("y",), ("y",), ring), code)

  then(operation, NARROW)
  for bits in types.LOWERINGS:
    then(softmax.Lower(bits), WIDE)
  np.testing.assert_allclose(machine.value("y"), exact(h), atol=error, rtol=1e-6)


def test_the_probability_of_an_only_key_stays_below_one():
  """Rounding carried a share of them past 1, where the narrow ring's product now and then came out 4 too small."""
  e_HxE = np.linspace(0.2, 1.3, 30_000, dtype=np.float32)[None]  # each a row of its own
  operations = ops.Engine(one_square=True, diagonal=False)
  machine, _ = on_reference(lambda e: operations.halve(e, 0, True), e_HxE)

  def then(fn, ring, reads, writes):
    code = engine.compile_function(
      fn, [jax.ShapeDtypeStruct(e_HxE.shape, e_HxE.dtype)] * len(reads), ["SECRET"] * len(reads)
    )
    machine.run(Step(None, "test", Function(fn), reads, writes, ring), code)

  then(lambda e: (e + 0.0, e + 0.0), NARROW, ("y",), ("e", "sums"))
  for bits in types.LOWERINGS:
    then(lambda sums, bits=bits: operations.lower(sums, bits), WIDE, ("sums",), ("sums",))
  then(lambda sums: softmax.Inverse(narrow=True)(operations, sums), WIDE, ("sums",), ("r",))
  then(lambda e, r: e * r, NARROW, ("e", "r"), ("p",))
  p_HxE = machine.value("p")
  assert p_HxE.max() < 1 - 2.0**-14 and p_HxE.min() > 1 - 2.0**-12


@pytest.mark.parametrize("fn,name", [(jnp.fft.fft, "fft"), (jax.lax.digamma, "chlo.digamma")])
def test_an_operation_that_the_engine_cannot_run_is_named_with_its_line(fn, name):
  with pytest.raises(UserError, match=rf"the two-party engine (knows no|cannot run) .*{name}.*\(test_engine.py:\d+\)"):
    engine.compile_function(lambda x: fn(x) + 1, [jax.ShapeDtypeStruct((8,), jnp.float32)], ["SECRET"])


def test_a_share_survives_its_packing_and_garbage_does_not():
  machine, _ = on_reference(lambda a: a + 1.0, np.ones(3, np.float32))
  share = machine.share("y")
  again = unpacked(packed(share))
  assert (again.meta, again.share_chunks) == (share.meta, share.share_chunks)
  with pytest.raises(PeerLost, match="no share"):
    unpacked(b"\x00\x00\x00\x09no")


def test_shares_alone_tell_nothing_of_a_value():
  """The client's share of the same prompt differs each time, and its bytes look random."""
  sent = []

  class Listening(Connection):
    def send(self, key, payload):
      if key.startswith("share:"):
        sent.append(payload)
      super().send(key, payload)

  def give(connection_of):
    ends = [connection_of(sock) for sock in socket.socketpair()]
    settings = Settings(1, False, "EMP_Ferret")
    value = np.zeros(5000, np.float32)
    variable = Variable(value.shape, SHARED)
    threads = [
      threading.Thread(
        target=lambda c, r: Party(c, r, settings, 1).give("x", variable, value if r == CLIENT else None),
        args=(end, role),
      )
      for end, role in zip(ends, (SERVER, CLIENT), strict=True)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(PATIENCE)
      assert not thread.is_alive()

  give(Listening), give(Listening)
  first, second = (np.frombuffer(payload[-40_000:], np.uint8) for payload in sent)
  assert np.mean(first == second) < 0.01
  assert np.all(np.bincount(first, minlength=256) > 90)  # of 156 each on average


def test_the_engine_is_only_needed_where_it_is_used(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  engine.core.cache_clear()
  with pytest.raises(UserError, match="is not installed: pip install --no-deps spu=="):
    engine.core()
  monkeypatch.undo()
  engine.core()
