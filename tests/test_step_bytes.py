import jax
import jax.numpy as jnp

from benchmarks import step_bytes


def moved(fn, *shapes):
  text = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()
  return sum(step_bytes.moved(text))


def test_an_elementwise_operation_reads_its_operands_and_writes_its_result():
  assert moved(lambda x, y: x * y + 1, (64, 32), (64, 32)) == 3 * 4 * 64 * 32


def test_a_loop_counts_as_often_as_it_runs_and_a_slice_for_its_own_part():
  through = lambda x, w_LxDxD: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_LxDxD)[0]
  of = lambda layers: moved(through, (8, 64), (layers, 64, 64))
  a_layer = (of(20) - of(10)) / 10
  assert of(30) - of(20) == 10 * a_layer
  read = 4 * (8 * 64 + 64 * 64)  # what its product must read, of which all weights would be more
  assert read < a_layer < 5 * read
