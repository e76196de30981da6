"""Products that are made before there is a prompt: the same results, for far fewer bytes and seconds after it."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from private.commands import needs_engine
from private.models import ARCHITECTURES, logits_of, make, slow_but, tokens_of
from private.two_threads import both
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.parties import engine, integers, material
from entropy_attn.private.parties.machine import Reference
from entropy_attn.private.parties.material import Mask, uniform
from entropy_attn.private.parties.party import Party
from entropy_attn.private.parties.session import Session
from entropy_attn.private.program import attend, causal, joined, products, squares
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.operations import Cut
from entropy_attn.private.program.packing import SLOTS
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, NARROW, SERVER, SHARED, WIDE, Program, Step, Variable

CHAIN = squares.exponential(5e-3, -16.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 9), st.sampled_from([1e-3, 1.0, 4000.0]))
def test_products_with_a_matrix_are_exact_modulo_the_ring(M, K, L, size):
  matrix = np.random.default_rng(M + K + L).normal(size=(K, L)) * size
  x = uniform((M, K), WIDE)
  true = x @ integers.encoded(matrix)  # of uint64, which wrap
  np.testing.assert_array_equal(integers.Matrix(matrix).times(x, 0, L), true)
  np.testing.assert_array_equal(integers.Matrix(matrix).times(x, L // 2, L), true[:, L // 2 :])


def shapes_of(operation, N, M):
  """Operands of N queries and M keys; N = M, or one query."""
  H, K, E = 3, 4, len(causal.entries(N, M))
  if isinstance(operation, products.Scores):
    return (H, N, K), (H, M, K)
  if isinstance(operation, products.Mix):
    return (H, E) if operation.join == joined.CHEAPEST else (H, N, M), (H, M, K)
  if isinstance(operation, products.ScaleRows):
    return (H, N, K), (H, N)
  return ((H, E), (H, N)) if isinstance(operation, products.Divide) else ((H, E),)


@pytest.mark.parametrize(
  "operation",
  [
    products.Scores(True, joined.CHEAPEST, True),
    products.Scores(False, joined.CHEAPEST, True),
    products.Mix(joined.CHEAPEST),
    products.Mix(joined.NEVER),
    products.Divide(),
    products.ScaleRows(),
    products.Square(),
  ],
)
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(0, 3), st.booleans(), st.sampled_from([WIDE, NARROW]))
def test_what_both_parties_make_of_masked_secrets_is_their_product(operation, length, spare, one_query, ring):
  """Masks may be larger than what they hide: made for a longer prompt."""
  sizes = [(1 if one_query else M, M) for M in (length, length + spare)]
  real, most = (shapes_of(operation, *size) for size in sizes)
  values = [uniform(shape, ring) for shape in real]
  servers = [uniform(shape, ring) for shape in real]
  shares = [servers, [x - s for x, s in zip(values, servers, strict=True)]]
  masks = [[uniform(shape, ring) for shape in most] for _ in range(2)]
  product = operation.multiply(*([a + b for a, b in zip(*masks, strict=True)] * 2)[:2])
  part = uniform(product.shape, ring)
  held = [Mask(tuple(masks[0]), part), Mask(tuple(masks[1]), product - part)]
  told = [material.hidden(operation, mask, mine) for mask, mine in zip(held, shares, strict=True)]
  opened = [x + y for x, y in zip(told[0][0], told[1][0], strict=True)]
  made = [
    material.multiplied(operation, used, opened, real, first=i == 0) for i, (_, used) in enumerate(told)
  ]  # fmt: skip
  np.testing.assert_array_equal(made[0] + made[1], operation.multiply(*(values * 2)[:2]))


def model_of(name):
  config, variables = make(ARCHITECTURES[name])
  model = weights_lib.fold(variables, config.model, spec_lib.transforms_for(config.model), (CHAIN, CHAIN))
  return config, variables, model


@needs_engine
@pytest.mark.parametrize("keys", [pytest.param(2.5, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("name", slow_but(["SM(t_i)+ScFuFFN"], ["SM(t_i)+ScFuFFN", "SM+LN+G", "SM+VRes+ScFuFFN(−1)"]))
def test_a_prompt_and_its_tokens_by_material_for_a_longer_one(name, keys, monkeypatch):
  """Of the products of masks one fails, as the engine has them fail: it is made anew, and nobody sees it.

  With 1.0 keys a head width, rows of the longer prompt are divided elsewhere than those of the shorter one.
  """
  monkeypatch.setattr(attend, "_NARROW_KEYS", keys)
  config, variables, model = model_of(name)
  tokens, sessions, failed = tokens_of(config), {}, []
  run_step = Party.run

  def fails_once(self, step, code):
    run_step(self, step, code)
    if isinstance(step.operation, products.CrossTerms) and self.role == SERVER and not failed:
      failed.append(step.writes[0])
      (share,) = self._numbers(step.writes, step.ring)
      self._set_numbers(step.writes[0], share + uniform(share.shape, step.ring), step.ring)

  monkeypatch.setattr(Party, "run", fails_once)

  def run(role, weights, said):
    def work(connection):
      session = sessions[role] = Session(connection, role, model.spec, weights, threads=1, prepared=True)
      parts, found, at = session.prepare(9, 3), [], 0
      for part, length in zip(parts, (7, 1, 1), strict=True):
        found.append(session.run(length, said[at : at + length] if said is not None else None, material=part))
        at += length
      with pytest.raises(UserError, match="the material, for 1 tokens, does not fit this program of 2"):
        session.run(2, said[at : at + 2] if said is not None else None, material=parts[1])
      return found

    return work

  served, asked = both(run(SERVER, model.weights, None), run(CLIENT, None, tokens))
  assert not isinstance(asked, Exception), asked
  assert served == [None, None, None]
  assert failed and [session.remade for session in sessions.values()] == [1, 1]
  atol = 0.05 if config.model.activation == "gelu" else 0.01
  np.testing.assert_allclose(np.concatenate(asked), logits_of(config, variables, tokens)[[6, 7, 8]], atol=atol)
  for records in (session.records for session in sessions.values()):
    kinds = {offline: {r.kind for r in records if r.offline == offline} for offline in (True, False)}
    assert kinds[True] >= {"setup", "projection", "embedding", "vocabulary", "scores", "values", "exponential"}
    assert not kinds[True] & {"maximum", "check", "reveal"}
  sent = {
    offline: sum(r.sent for session in sessions.values() for r in session.records if r.offline == offline)
    for offline in (True, False)
  }
  assert sent[False] < 0.35 * sent[True] or config.model.norm != "none"


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 7, 8191, 8192, 9000]), st.sampled_from([WIDE, NARROW]), st.booleans())
def test_cross_terms_make_the_product_of_masks_and_open_one_number_of_each_ciphertext(n, ring, square):
  operation = products.Square() if square else products.ScaleRows()
  shapes = ((n,),) if square else ((n, 2), (n,))
  cross = products.CrossTerms(operation, shapes)
  masks = [[uniform(shape, ring) for shape in shapes] for _ in range(2)]
  r, s = (material.laid_out(cross, mine, server=i == 0) for i, mine in enumerate(masks))
  part = uniform(r.shape, ring)
  shares = part, r * s - part
  assert len(r) == cross.length and np.flatnonzero(cross.witnesses()).tolist() == list(range(0, len(r), SLOTS))
  product = sum(material.crossed(cross, mine, share) for mine, share in zip(masks, shares, strict=True))
  x, *y = (a + b for a, b in zip(*masks, strict=True))
  np.testing.assert_array_equal(product, operation.multiply(x, (y or [x])[0]))
  opened = [(own[cross.witnesses()], share[cross.witnesses()]) for own, share in zip((r, s), shares, strict=True)]
  assert material.right(*opened)
  opened[0][1][-1] += opened[0][1].dtype.type(2**20)
  assert not material.right(*opened)


@needs_engine
def test_approximate_products_are_those_of_a_prepared_sessions_narrow_ring_alone():
  _, _, model = model_of("SM(t_i)+ScFuFFN")
  for prepared in (True, False):
    of_ring = {
      ring: engine.runtime_config(Settings.of(model.spec, prepared=prepared), ring).cheetah_2pc_config
      for ring in (WIDE, NARROW)
    }
    assert [of_ring[ring].enable_mul_lsb_error for ring in (WIDE, NARROW)] == [False, prepared]


@needs_engine
def test_a_product_is_cut_wherever_its_ring_has_room():
  machine, compiler = Reference(Settings(1, False, "EMP_Ferret")), engine.Compiler(model_of("SM(t_i)+ScFuFFN")[2].spec)
  x, W = np.float32([[4000.0, -0.5], [-3000.0, 2.0]]), np.float32([[4000.0, 1.0, -2500.0], [1.0, 0.25, 3.0]])
  steps = (
    Step(None, "k", products.Weigh(0, 3), ("x", "W"), ("xW",)),
    Step(None, "k", Cut(), ("xW",), ("y",)),
  )  # fmt: skip
  program = Program({"x": Variable(x.shape, SHARED), "W": Variable(W.shape, SERVER, whole=True)}, steps, (), ())
  for name, value in (("x", x), ("W", W)):
    machine.give(name, program.inputs[name], value)
  for step, code in zip(steps, compiler.program(program), strict=True):
    machine.run(step, code)
  np.testing.assert_allclose(machine.value("y"), x @ W, atol=0.05)
