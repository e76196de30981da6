"""Every fused implementation against the float64 reference: outputs and all gradients, over the space of inputs.

The Pallas kernels run here in interpret mode, but on their own chip (JAX_PLATFORMS=cuda pytest tests/test_kernels.py
-k gpu), where products of float32 are the hardware's; tests/test_aot.py compiles them for chips that are not there.
"""

import functools

from hypothesis import example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn.attention import dot_product_attention
from entropy_attn.kernels import blockwise, gpu, tpu

KERNELS = {
  "blockwise": blockwise,
  "gpu": gpu,
  "tpu": tpu,
}


ROUNDING = 1 if jax.default_backend() == "cpu" else 4  # a chip's float32 products are three of 11 bits, or six of 8


def mode(name):
  """Options of a kernel: interpreted anywhere but on its own chip."""
  return {} if name == "blockwise" else {"interpret": jax.default_backend() != name}


@functools.cache
def program(name, causal, window=None, softcap=None):
  """out, entropy, and the gradients of q, k, v, row_scale, as attention.py asks them of the kernel."""
  kernel, options = KERNELS[name], {"causal": causal, "window": window, "softcap": softcap} | mode(name)

  @jax.jit
  def both(q, k, v, row_scale, keep, dout, dentropy):
    if name == "blockwise" and keep is not None:
      keep = keep[:, None, None]
    operands = q, k, v, row_scale, keep
    found = kernel.forward(*operands, with_entropy=dentropy is not None, with_rest=True, **options)
    *grads, drow_scale = kernel.backward(*operands, found, dout, dentropy, **options)
    return found.out_BxTxHxK, found.entropy_BxHxT, *grads, jnp.sum(drow_scale, axis=0)

  return both


def run(name, *, causal, window=None, softcap=None, **data):
  return program(name, causal, window, softcap)(**data)


@functools.partial(jax.jit, static_argnames=("causal", "window", "softcap"))
def reference(q, k, v, row_scale, keep, dout, dentropy, causal, window=None, softcap=None):
  """The same by the materialised reference and its automatic derivatives."""
  mask = None if keep is None else keep[:, None, None]

  def attend(q, k, v, row_scale):
    options = {"is_causal": causal, "local_window_size": window, "logit_softcap": softcap, "mask": mask}
    out, entropy = dot_product_attention(
      q, k, v, temperature=1 / row_scale, scale=1.0, implementation="reference", **options
    )
    return out, jnp.swapaxes(entropy, 1, 2)

  values, vjp = jax.vjp(attend, q, k, v, row_scale)
  return *values, *vjp((dout, jnp.broadcast_to(dentropy, values[1].shape)))


def oracle(q, k, v, row_scale, keep, dout, dentropy, **options):
  """The reference in float64."""
  with jax.enable_x64():
    q, k, v, row_scale, dout = (jnp.asarray(np.asarray(x, np.float64)) for x in (q, k, v, row_scale, dout))
    dentropy = jnp.zeros(row_scale.shape) if dentropy is None else jnp.asarray(np.asarray(dentropy, np.float64))
    return reference(q, k, v, row_scale, keep, dout, dentropy, **options)


def inputs(seed, B, T, S, H, G, K, *, log_t=0.0, width=None, size=1.0, keep=False, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(size * rng.normal(size=shape), dtype)
  temperature = 10**log_t * rng.uniform(0.5, 2, (H, T)) * rng.choice([-1, 1, 1, 1], (H, 1))
  masked = None
  if keep:
    masked = rng.random((B, S)) < 0.7
    masked[-1] = False  # a sequence with nothing to attend to
  return {
    "q": normal(B, T, H, K),
    "k": normal(B, S, G, K),
    "v": normal(B, S, G, width or K),
    "row_scale": jnp.asarray(K**-0.5 / temperature, jnp.float32),
    "keep": None if masked is None else jnp.asarray(masked),
    "dout": jnp.asarray(rng.normal(size=(B, T, H, width or K)), dtype),
    "dentropy": jnp.asarray(rng.normal(size=(B, H, T)), jnp.float32),
  }


NAMES = ("out", "entropy", "dq", "dk", "dv", "drow_scale")


def assert_equal(name, data, causal, tolerance, **options):
  """Each figure within `tolerance` of its own largest magnitude."""
  expected = oracle(**data, causal=causal, **options)
  for figure, ours, true in zip(NAMES, run(name, **data, causal=causal, **options), expected, strict=True):
    if ours is None:
      continue  # nobody asked for entropy
    true = np.asarray(true)
    assert np.all(np.isfinite(ours)), figure
    np.testing.assert_allclose(
      np.asarray(ours, np.float64), true, rtol=0, atol=tolerance * max(1, np.abs(true).max()), err_msg=figure
    )


SHAPES = st.sampled_from(
  [(1, 1, 1, 1, 1, 1), (2, 9, 9, 3, 3, 4), (2, 130, 130, 4, 2, 16), (1, 300, 300, 2, 1, 64), (1, 70, 200, 2, 2, 20),
   (2, 200, 70, 3, 1, 8), (2, 1, 200, 4, 2, 16), (1, 150, 150, 1, 1, 80)]
)  # fmt: skip


INPUTS = {
  "shape": SHAPES, "causal": st.booleans(), "keep": st.booleans(), "log_t": st.floats(-2, 2),
  "seed": st.integers(0, 2**31),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None, max_examples=3)
@given(**INPUTS)
@example(shape=(2, 130, 130, 4, 2, 16), causal=True, keep=True, log_t=-2.0, seed=0)
@example(shape=(1, 300, 300, 2, 1, 64), causal=True, keep=False, log_t=0.0, seed=1)
@example(shape=(2, 9, 9, 3, 3, 4), causal=True, keep=True, log_t=-2.0, seed=67388610)
@example(shape=(2, 1, 200, 4, 2, 16), causal=False, keep=True, log_t=0.0, seed=2)  # a query of one row
def test_equals_the_float64_reference(name, shape, causal, keep, log_t, seed):
  # A cold softmax multiplies the rounding of its logits: the tolerance grows with them.
  tolerance = 4e-6 * ROUNDING * max(1, 10**-log_t)
  assert_equal(name, inputs(seed, *shape, log_t=log_t, keep=keep), causal, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None, max_examples=40)
@given(**INPUTS)
def test_equals_the_float64_reference_anywhere(name, **data):
  test_equals_the_float64_reference.hypothesis.inner_test(name, **data)


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_is_as_near_as_its_rounding(name):
  data = inputs(0, 2, 140, 140, 4, 2, 64, keep=True, dtype=jnp.bfloat16)
  assert_equal(name, data, True, 2e-2)
  _, entropy, *_ = run(name, **data, causal=True)
  np.testing.assert_allclose(entropy, oracle(**data, causal=True)[1], atol=1e-5)  # logits and statistics are float32


@pytest.mark.parametrize("name", KERNELS)
def test_a_row_that_sees_one_key_has_no_entropy_and_a_uniform_row_all_of_it(name):
  data = inputs(1, 1, 150, 150, 2, 2, 16)
  data["q"] = data["q"].at[:, 75:].set(0)
  out, entropy, *_ = run(name, **data, causal=True)
  np.testing.assert_allclose(entropy[..., 75:], np.broadcast_to(np.log(np.arange(76, 151)), (1, 2, 75)), atol=1e-6)
  assert np.all(entropy[..., 0] == 0)
  np.testing.assert_allclose(out[:, 0], data["v"][:, 0], atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_extreme_logits_give_one_hot_rows_and_finite_gradients(name):
  data = inputs(2, 1, 140, 140, 2, 1, 16, size=30.0)
  data["row_scale"] = data["row_scale"] * 100  # logits of the order of 1e5
  _, entropy, *grads = run(name, **data, causal=True)
  np.testing.assert_allclose(entropy, oracle(**data, causal=True)[1], atol=5e-2)  # what rounding 1e5 leaves
  assert np.median(np.abs(entropy)) < 1e-6
  assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_without_keys_are_zero_in_everything(name):
  data = inputs(3, 2, 80, 80, 2, 2, 16, keep=True)
  out, entropy, dq, dk, dv, _ = run(name, **data, causal=True)
  for figure in (out[-1], entropy[-1], dq[-1], dk[-1], dv[-1]):
    assert np.all(figure == 0)


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_finite_is_not_hidden(name):
  data = inputs(4, 1, 140, 140, 2, 2, 16)
  data["k"] = data["k"].at[0, 70, 1].set(jnp.nan)
  out, entropy, *_ = run(name, **data, causal=True)
  assert np.all(np.isnan(entropy[0, 1, 70:])) and np.all(np.isnan(out[0, 70:, 1]))
  assert np.all(np.isfinite(entropy[0, 0])) and np.all(np.isfinite(entropy[0, :, :70]))


@pytest.mark.parametrize("name", KERNELS)
def test_without_entropy_the_rest_is_the_same(name):
  data = inputs(5, 1, 140, 140, 2, 2, 16)
  options = {"causal": True} | mode(name)
  operands = [data[x] for x in ("q", "k", "v", "row_scale", "keep")]
  found, full = (KERNELS[name].forward(*operands, with_entropy=e, **options) for e in (False, True))
  assert found.entropy_BxHxT is None and full.entropy_BxHxT is not None
  for a, b in zip(found._replace(entropy_BxHxT=full.entropy_BxHxT), full, strict=True):
    if a is not None:
      np.testing.assert_allclose(a, b, atol=1e-6)
  assert_equal(name, data | {"dentropy": None}, True, 2e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
  "shape, causal, window, softcap",
  [
    ((2, 300, 140, 2, 2, 16), False, (150, 30), 3.0),  # some rows see no key
    pytest.param((2, 300, 300, 2, 1, 16), True, (40, 9), None, marks=pytest.mark.slow),
    pytest.param((2, 140, 300, 2, 2, 16), False, (0, 0), None, marks=pytest.mark.slow),
    pytest.param((2, 140, 300, 2, 2, 16), False, (400, 150), None, marks=pytest.mark.slow),
    pytest.param((1, 300, 300, 2, 2, 64), True, (1000, 0), 1.5, marks=pytest.mark.slow),
  ],
)
def test_windows_and_soft_caps_equal_the_float64_reference(name, shape, causal, window, softcap):
  assert_equal(name, inputs(6, *shape, keep=shape[0] > 1), causal, 4e-6 * ROUNDING, window=window, softcap=softcap)


@pytest.mark.parametrize("name, platform", [("gpu", "cuda"), ("tpu", "tpu")])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_kernel_is_lowered_for_its_chip_in_each_mode_of_jax(name, platform, dtype):
  kernel = KERNELS[name]
  if name == "gpu" and jax.default_backend() != "gpu" and jax.__version_info__ >= (0, 11):
    pytest.skip("this jax lowers for a GPU only where one is")

  def both(q, k, v, row_scale, keep, dout, dentropy):
    operands, options = (q, k, v, row_scale, keep), {"causal": False, "window": (5, 3), "softcap": 3.0}
    found = kernel.forward(*operands, with_rest=True, **options)
    return found.out_BxTxHxK, kernel.backward(*operands, found, dout, dentropy, **options)

  data = inputs(0, 2, 40, 50, 4, 2, 16, keep=True, dtype=dtype)
  mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
  split = jax.sharding.PartitionSpec("x")
  specs = [jax.sharding.PartitionSpec() if x == "row_scale" else split for x in data]
  for wrapped in (both, jax.shard_map(both, mesh=mesh, in_specs=tuple(specs), out_specs=split)):
    with jax.enable_x64(), jax.numpy_rank_promotion("raise"):
      jax.jit(wrapped).trace(*data.values()).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("name", ["gpu", "tpu"])
@pytest.mark.parametrize("axis", ["B", "T", "S", "H"])
def test_no_elements_give_no_elements_and_rows_without_keys_zeros(name, axis):
  sizes = {"B": 2, "T": 4, "S": 6, "H": 2} | {axis: 0}
  B, T, S, H = sizes.values()
  x = lambda *shape: jnp.ones(shape, jnp.bfloat16)
  operands = x(B, T, H, 8), x(B, S, H, 8), x(B, S, H, 8), jnp.ones((H, T)), None
  found = KERNELS[name].forward(*operands, causal=False, with_rest=True)
  assert found.out_BxTxHxK.shape == found.rest_BxTxHxK.shape == (B, T, H, 8) and found.entropy_BxHxT.shape == (B, H, T)
  *grads, drow_scale = KERNELS[name].backward(*operands, found, x(B, T, H, 8), jnp.ones((B, H, T)), causal=False)
  assert [g.shape for g in grads] == [a.shape for a in operands[:3]] and drow_scale.shape == (B, H, T)
  assert not any(np.any(np.asarray(a, float)) for a in (found.out_BxTxHxK, found.entropy_BxHxT, *grads, drow_scale))


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_what_a_kernel_cannot_take_it_names(name):
  unsupported = KERNELS[name].unsupported
  x = lambda width=64, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((1, 8, 2, width), dtype)
  assert unsupported(x(), x(), x()) is None
  assert "float64" in unsupported(*[x(dtype=np.float64)] * 3)
  assert "bfloat16, float32" in unsupported(x(), x(dtype=jnp.float32), x(dtype=jnp.float32))
  assert "values of width 32" in unsupported(x(), x(), x(32))
  assert "width 0" in unsupported(x(0), x(0), x(0))


def test_the_widest_heads_of_the_gpu_kernel():
  x = lambda width, dtype: [jax.ShapeDtypeStruct((1, 8, 2, width), dtype)] * 3
  assert gpu.unsupported(*x(256, jnp.bfloat16)) is None
  assert "bfloat16 heads of width 512" in gpu.unsupported(*x(512, jnp.bfloat16))
  assert "float32 heads of width 200" in gpu.unsupported(*x(200, jnp.float32))
