"""The analytical cost: ciphertexts counted as the engine cuts them, and every measured run predicted."""

import json
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from private.models import LINEAR, make
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.parties import engine
from entropy_attn.private.price import count, lines, predict
from entropy_attn.private.price import protocols as protocols_lib
from entropy_attn.private.program import ops
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, SERVER, SHARED, WIDE, Function, Step, Variable

MEASURED = sorted((pathlib.Path(__file__).parents[3] / "benchmarks" / "private").glob("*.json"))
CHEAP = Settings(1, True, "EMP_Ferret")


def protocols(ring=64, setting="cheap"):
  return protocols_lib.Protocols(protocols_lib.calibration()[f"{setting}/{ring}"])


def cost_of(fn, *variables, settings_=CHEAP, protocols_=None):
  step = Step(None, "test", Function(fn), tuple(f"x{i}" for i in range(len(variables))), ("y",))
  operations = ops.Engine(one_square=True, diagonal=False)
  return count.step_cost(step, variables, operations, protocols_ or protocols(), settings_)[0]


def secret(*shape, dtype="float32"):
  return Variable(shape, SHARED, dtype)


def test_what_one_party_knows_costs_nothing():
  of_server, of_client = Variable((50, 50), SERVER), Variable((50, 50), CLIENT)
  for fn in (lambda a: a @ a, jnp.exp, lambda a: a * a, lambda a: jnp.maximum(a, 0) / 3.0):
    assert cost_of(fn, of_server) == protocols_lib.Cost()
  assert cost_of(lambda a, b: a @ b, of_server, of_client).bytes > 0
  assert cost_of(lambda a, b: a + b, of_server, of_client) == protocols_lib.Cost()


def test_local_operations_on_secrets_are_free():
  x = secret(6, 8)
  for fn in (
    lambda a: a.T.reshape(-1)[3:] + 1.0,
    lambda a: jnp.concatenate([a, -a]).sum(0),
    lambda a: a[jnp.array([2, 0])],
  ):
    assert cost_of(fn, x).bytes == 0


def test_a_product_with_integers_is_not_cut_and_one_with_a_secret_costs_more_than_with_a_private_number():
  n, x = 40_000, secret(40_000)
  left, right = secret(50, 60), Variable((60, 70), SERVER)
  integers = cost_of(lambda a, b: a @ b, secret(50, 60, dtype="int32"), right)
  numbers = cost_of(lambda a, b: a @ b, left, right)
  assert numbers.bytes - integers.bytes == pytest.approx(protocols().each("cut", 50 * 70).bytes)
  numbers = cost_of(lambda a, b: a * b, x, x)
  assert cost_of(lambda a, b: a * b, x, Variable((n,), SERVER)).bytes < numbers.bytes
  assert cost_of(lambda a: a * 0.5, x) == protocols().each("cut", n)


def test_a_square_is_cheaper_than_a_product():
  square = ops.Engine(one_square=True, diagonal=False).square
  assert cost_of(square, secret(98_304)).bytes < 0.72 * cost_of(lambda a: a * a, secret(98_304)).bytes


def test_an_unknown_operation_is_named():
  with pytest.raises(UserError, match="private.cost does not know the operation (cbrt|sin)"):
    cost_of(jnp.sin, secret(4))


@pytest.mark.parametrize(
  "shape,queries,answers",
  [
    ((128, 64, 128), 1, 2),  # QKᵀ of a head
    ((128, 128, 64), 1, 1),  # AV
    ((128, 768, 768), 12, 12),
    ((128, 768, 2304), 12, 36),
    ((1, 64, 64), 1, 1),
  ],
)
def test_ciphertexts_of_the_usual_products(shape, queries, answers):
  parts = protocols_lib.ciphertexts(*shape)
  assert (parts.queries, parts.answers) == (queries, answers)


@settings(max_examples=60, deadline=None)
@given(M=st.integers(1, 300), K=st.integers(1, 1200), L=st.integers(1, 3000))
def test_ciphertexts_hold_all_that_they_must(M, K, L):
  parts = protocols_lib.ciphertexts(M, K, L)
  assert parts.queries * protocols_lib.SLOTS >= min(M, L) * K
  assert parts.answers * protocols_lib.SLOTS >= M * L or parts.rotations == 0
  assert parts.pieces >= -(-M * K * L // protocols_lib.SLOTS)


@pytest.mark.parametrize("setting,ring", [("cheap", 64), ("cheap", 32), ("stock", 64)])
def test_every_constant_is_there_and_none_is_negative(setting, ring):
  for name, constants in protocols_lib.calibration()[f"{setting}/{ring}"].items():
    for rates in constants.values():
      assert all(rate >= 0 for rate in rates), name
  assert protocols(ring, setting).each("ciphertext pair", 1).bytes > 2e5


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_bytes_and_rounds_of_every_recorded_run_are_predicted(path):
  measured = json.loads(path.read_text())
  found = predict.of_profile(measured)
  assert found["total_bytes"] == pytest.approx(measured["total_bytes"], rel=0.03)
  assert found["rounds"] == pytest.approx(measured["rounds"], rel=0.05)


def test_recorded_runs_are_of_several_architectures_lengths_and_settings():
  found = [json.loads(path.read_text()) for path in MEASURED]
  assert len({(m["architecture"], m["length"], m["d_model"]) for m in found}) >= 6
  assert {m["transforms"]["exponential"] for m in found} == {"squares", "engine"}


def test_the_parts_make_the_whole():
  config, _ = make(LINEAR)
  found = predict.of_config(config, spec_lib.transforms_for(config.model))
  for groups in (found["by_operation"], found["by_layer"]):
    for name in ("bytes", "rounds", "seconds"):
      total = found["total_bytes" if name == "bytes" else name]
      assert sum(group[name] for group in groups.values()) == pytest.approx(total)
  assert list(found["by_layer"]) == ["setup", "embedding", "0", "1", "head"]


def test_each_transform_but_diagonal_saves_bytes_or_nothing():
  config, _ = make(
    LINEAR | {"temperature": "per_head"},
    num_layers=3,
    d_model=128,
    num_heads=4,
    vocab_size=32_000,
    context_length=128,
    max_positions=128,
  )
  whole = predict.of_config(config, spec_lib.transforms_for(config.model))["total_bytes"]
  for text in (
    "one_product=off", "last_position=off", "eliminate_ffns=off", "division=late", "embedding=one_hot",
    "softmax_ring=64,division=late", "exponential=engine,softmax_ring=64,division=late", "stock",
  ):  # fmt: skip
    assert predict.of_config(config, spec_lib.transforms_for(config.model, text))["total_bytes"] >= whole * 0.999, text


def test_latency_is_bytes_rounds_and_computation():
  result = {"total_bytes": 1e9, "rounds": 100, "seconds": 7.0}
  assert lines.latency(result, 1000, 0) == pytest.approx(8 + 7)
  assert lines.latency(result, 100, 80, compute=0) == pytest.approx(80 + 8)


@pytest.mark.parametrize("text,line", [("LAN", (1000, 0.5)), ("300,20", (300, 20)), ("1.5,0", (1.5, 0))])
def test_a_line_is_read(text, line):
  assert lines.parse(text) == line


@pytest.mark.parametrize("text", ["lan", "100", "0,1", "1,-1", "a,b", "1,2,3"])
def test_a_line_that_is_none_is_refused(text):
  with pytest.raises(UserError, match="is neither LAN, WAN nor MBIT,RTT"):
    lines.parse(text)


def test_no_engine_is_needed(monkeypatch):
  monkeypatch.setattr(engine, "core", lambda: pytest.fail("the engine was asked for"))
  config, _ = make({})
  assert predict.of_config(config, spec_lib.transforms_for(config.model), 6)["total_bytes"] > 0


def test_the_trace_is_of_the_functions_that_run():
  """An operation added to a step is counted: nothing is listed twice."""
  more = cost_of(lambda a: jnp.maximum(a, 0.0) + jax.lax.rsqrt(a), secret(500))
  less = cost_of(lambda a: jnp.maximum(a, 0.0), secret(500))
  assert more.bytes - less.bytes == pytest.approx(protocols().made_of_many("inverse root", 500).bytes)
  assert WIDE == 64
