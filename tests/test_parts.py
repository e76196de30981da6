"""Attention over meshes whose axes are Explicit or a shard_map's: where each result lies, and what cannot be cut."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from entropy_attn import dot_product_attention, parts


def mesh(*sizes):
  """With axes of jax.make_mesh's own kind, Explicit."""
  return jax.make_mesh(sizes, ("data", "tensor")[: len(sizes)], devices=jax.devices()[: math.prod(sizes)])


def qkv(B=2, T=12, H=4, G=4, K=8):
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.normal(size=(B, T, heads, K)), jnp.float32) for heads in (H, G, G))


def spec(x):
  return tuple(jax.typeof(x).sharding.spec)


def attend(*operands, **options):
  return dot_product_attention(*operands, is_causal=True, implementation="blockwise", **options)


@pytest.mark.parametrize(
  "heads,axis,lies",
  [
    ((4, 4), "tensor", "tensor"),
    ((4, 2), "tensor", "tensor"),  # two query heads a key head, on each device those of its own
    ((4, 1), "tensor", "tensor"),  # the one key head is on all of them
    ((6, 3), "tensor", None),  # three key heads are no two parts: gathered
  ],
)
def test_heads_stay_where_they_are_if_the_key_heads_can(heads, axis, lies):
  H, G = heads
  q, k, v = qkv(H=H, G=G)
  m = mesh(2, 2)
  lay = lambda x, *axes: jax.device_put(x, NamedSharding(m, PartitionSpec(*axes)))
  laid = lay(q, "data", None, axis), lay(k, "data"), lay(v, "data")
  with jax.set_mesh(m):
    out, entropy = jax.jit(attend)(*laid)
  assert (spec(out)[0], spec(out)[2], spec(entropy)[2]) == ("data", lies, lies)
  for ours, true in zip((out, entropy), attend(q, k, v), strict=True):
    np.testing.assert_allclose(ours, true, atol=1e-6)


@pytest.mark.parametrize("run", [jax.jit, lambda fn: fn])
def test_what_lies_on_no_mesh_is_laid_beside_what_does_though_none_is_set(run):
  q, k, v = qkv()
  mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 1, 12)) < 0.7)
  laid = (jax.device_put(x, NamedSharding(mesh(2), PartitionSpec("data"))) for x in (q, k, v))
  out, _ = run(lambda q, k, v: attend(q, k, v, mask=mask))(*laid)
  assert spec(out)[0] == "data"
  np.testing.assert_allclose(out, attend(q, k, v, mask=mask)[0], atol=1e-6)


def test_a_length_that_is_cut_is_gathered():
  q, k, v = qkv()
  laid = [jax.device_put(x, NamedSharding(mesh(2), PartitionSpec(None, "data"))) for x in (q, k, v)]
  with jax.set_mesh(mesh(2)):
    out, _ = jax.jit(attend)(*laid)
  assert spec(out) == (None,) * 4
  np.testing.assert_allclose(out, attend(q, k, v)[0], atol=1e-6)


@pytest.mark.slow
def test_the_parts_of_what_is_whole_add_up_their_gradients():
  """A bias, and temperatures, of all devices: each gradient is the sum over the batch."""
  q, k, v = qkv()
  bias, temperature = jnp.asarray(np.random.default_rng(2).normal(size=(4, 12, 12)), jnp.float32), jnp.full(4, 1.5)

  def total(bias, temperature, q, k, v):
    return sum(jnp.sum(jnp.sin(x)) for x in attend(q, k, v, bias=bias, temperature=temperature))

  def within(*operands):
    return jax.lax.psum(total(*operands), "data")

  whole, cut = PartitionSpec(), PartitionSpec("data")
  mapped = jax.shard_map(within, mesh=mesh(2), in_specs=(whole, whole, cut, cut, cut), out_specs=whole)
  true = jax.grad(total, argnums=(0, 1))(bias, temperature, q, k, v)
  with jax.set_mesh(mesh(2)):
    laid = [jax.device_put(x, NamedSharding(mesh(2), cut)) for x in (q, k, v)]
    for fn in (total, mapped):
      for ours, expected in zip(jax.jit(jax.grad(fn, argnums=(0, 1)))(bias, temperature, *laid), true, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_elsewhere_arrays_are_left_as_they_are():
  x, y = jnp.zeros(3), jnp.zeros((2, 3))
  assert parts.alike(x, None, y) == (x, None, y)
  jaxpr = jax.make_jaxpr(lambda x, y: parts.on_each(lambda x, y: (x @ y,), ("B", "BT"), ("T",), "B", x, y))(x[:2], y)
  assert [equation.primitive.name for equation in jaxpr.eqns] == ["dot_general"]


def test_rows_of_a_table_lie_as_their_indices():
  table, rows = jnp.arange(12.0).reshape(4, 3), jnp.asarray([[0, 3], [2, 9]])
  with jax.set_mesh(mesh(2)):
    found = parts.take(table, jax.device_put(rows, PartitionSpec("data")), mode="fill")
  assert spec(found) == ("data", None, None)
  np.testing.assert_array_equal(found, jnp.take(table, rows, axis=0, mode="fill"))
