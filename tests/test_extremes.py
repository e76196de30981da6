"""Logits where heads collapse and diverge: every implementation, value and gradient, against float64.

On a GPU the kernels run as they are: JAX_PLATFORMS=cuda,cpu pytest tests/test_extremes.py -k "gpu and not tpu"
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn.attention import dot_product_attention
from entropy_attn.kernels import blockwise, gpu, tpu

KERNELS = {"blockwise": blockwise, "gpu": gpu, "tpu": tpu}
IMPLEMENTATIONS = ("reference", *KERNELS)
B, T, H, K = 1, 72, 2, 16  # more keys than a tile has
ROUNDING = 1 if jax.default_backend() == "cpu" else 4  # a chip's float32 products are three of 11 bits, or six of 8
FIGURES = ("out", "entropy", "dq", "dk", "dv", "drow_scale")


@functools.cache
def program(name):
  """out [B, T, H, K], entropy [B, H, T] and the gradients of q, k, v, row_scale, causal; compiled once a dtype."""
  if name == "reference":

    def attend(q, k, v, row_scale):
      out, entropy = dot_product_attention(q, k, v, scale=row_scale, is_causal=True, implementation=name)
      return out, jnp.swapaxes(entropy, 1, 2)

    def both(q, k, v, row_scale, dout, dentropy):
      values, vjp = jax.vjp(attend, q, k, v, row_scale)
      return *values, *vjp((dout, dentropy))

    return jax.jit(both)
  options = {"causal": True} | ({} if name == "blockwise" else {"interpret": jax.default_backend() != name})

  @jax.jit
  def both(q, k, v, row_scale, dout, dentropy):
    operands = q, k, v, row_scale, None
    found = KERNELS[name].forward(*operands, with_rest=True, **options)
    *grads, drow_scale = KERNELS[name].backward(*operands, found, dout, dentropy, **options)
    return found.out_BxTxHxK, found.entropy_BxHxT, *grads, jnp.sum(drow_scale, axis=0)

  return both


def run(name, data) -> dict:
  found = zip(FIGURES, program(name)(*(jnp.asarray(x) for x in data.values())), strict=True)
  return {figure: np.asarray(x, np.float64) for figure, x in found}


def oracle(data) -> dict:
  """The formulas in float64, without sums of p dP − sum p dP that rounding could leave over."""
  q, k, v, row_scale, dout, dentropy = (np.asarray(x, np.float64) for x in data.values())
  x = np.einsum("bthk,bshk->bhts", q, k)
  causal = np.tril(np.ones((T, T), bool))
  with np.errstate(over="ignore"):
    s = np.where(causal, x * row_scale[:, :, None], -np.inf)
  s -= s.max(-1, keepdims=True)
  p = np.exp(s)
  p /= p.sum(-1, keepdims=True)
  log_p = np.log(np.maximum(p, 1e-300))
  entropy = -np.sum(p * log_p, axis=-1)
  e = np.einsum("bthk,bshk->bhts", dout, v) - dentropy[..., None] * log_p
  ds = p * (e - np.sum(p * e, axis=-1, keepdims=True))
  scaled = ds * row_scale[:, :, None]
  return {
    "out": np.einsum("bhts,bshk->bthk", p, v),
    "entropy": entropy,
    "dq": np.einsum("bhts,bshk->bthk", scaled, k),
    "dk": np.einsum("bhts,bthk->bshk", scaled, q),
    "dv": np.einsum("bhts,bthk->bshk", p, dout),
    "drow_scale": np.sum(ds * x, axis=(0, 3)),
  }


def inputs(logits=1.0, dtype=jnp.float32, seed=0, width=K) -> dict:
  """Operands whose logits are of that size."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: np.array(jnp.asarray(rng.normal(size=shape), dtype))
  row_scale = logits * width**-0.5 * rng.uniform(0.5, 2, (H, T)) * np.array([[1], [-1]])
  return {
    "q": normal(B, T, H, width),
    "k": normal(B, T, H, width),
    "v": normal(B, T, H, width),
    "row_scale": row_scale.astype(np.float32),
    "dout": normal(B, T, H, width),
    "dentropy": rng.normal(size=(B, H, T)).astype(np.float32),
  }


def sizes(data) -> dict:
  """What the gradients of logits of order one are multiplied by: the yardstick of their rounding."""
  steep = max(1.0, float(np.abs(data["row_scale"]).max()))
  products = float(np.abs(np.einsum("bthk,bshk->bhts", *(data[x].astype(np.float64) for x in "qk"))).max())
  return dict.fromkeys(FIGURES, 1.0) | {"dq": steep, "dk": steep, "drow_scale": products}


def assert_near(name, data, tolerance):
  found, expected, size = run(name, data), oracle(data), sizes(data)
  for figure in FIGURES:
    assert np.all(np.isfinite(found[figure])), figure
    most = size[figure] * max(1, np.abs(expected[figure]).max() / size[figure])
    np.testing.assert_allclose(
      found[figure] / most, expected[figure] / most, rtol=0, atol=tolerance, err_msg=f"{name}: {figure}"
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("logits", [1e6, 1e8, 1e10, 1e30])
def test_one_hot_rows_are_the_values_and_have_no_gradient_but_of_them(name, logits):
  data = inputs(logits)
  assert_near(name, data, 2e-6 * ROUNDING)
  found = run(name, data)
  assert np.all(found["entropy"] == 0)
  assert np.abs(found["dv"]).max() <= np.abs(data["dout"]).sum(1).max()  # no p passes 1


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("logits", [1e6, 1e10])
def test_one_hot_rows_of_bfloat16(name, logits):
  assert_near(name, inputs(logits, jnp.bfloat16), 8e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name,width,dtype",
  [("gpu", 256, jnp.bfloat16), ("gpu", 128, jnp.float32), ("tpu", 512, jnp.bfloat16), ("tpu", 384, jnp.float32)],
)
@pytest.mark.parametrize("logits", [1.0, 1e6, 1e10])
def test_the_widest_heads_are_as_right(name, width, dtype, logits):
  assert_near(name, inputs(logits, dtype, width=width), 8e-3 if dtype == jnp.bfloat16 else 2e-6 * ROUNDING)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_entropy_has_its_gradient_at_logits_of_ten_thousand(name):
  data = inputs(1e4)
  data["dout"] = np.zeros_like(data["dout"])
  found, expected = run(name, data), oracle(data)
  for figure in ("dq", "dk"):
    # Rounding the products alone moves a logit of 1e4 by 1e-3.
    assert np.abs(found[figure] - expected[figure]).max() <= 5e-3 * ROUNDING * np.abs(expected[figure]).max(), figure


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("logits", [1.0, 1e6])
def test_equal_keys_share_a_row_however_large_its_logits(name, logits):
  data = inputs(logits)
  data["k"][:, 1::2] = data["k"][:, ::2]
  assert_near(name, data, 2e-5 * ROUNDING)
  pairs = run(name, data)["entropy"][..., 1::2]
  if logits > 1:
    assert np.sum(np.abs(pairs - np.log(2)) < 1e-6) > pairs.size / 2


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_logit_of_minus_infinity_weighs_nothing(name):
  data = inputs()
  data["q"][..., 0], data["k"][..., 0] = 1e20, 0
  data["row_scale"] = np.abs(data["row_scale"])
  data["k"][0, 30, :, 0] = -1e20  # the product overflows
  found, expected = run(name, data), oracle(data)
  for figure in ("out", "entropy", "dv"):
    np.testing.assert_allclose(found[figure], expected[figure], atol=1e-5, err_msg=figure)
  for figure in ("dq", "dk"):
    np.testing.assert_allclose(found[figure][..., 1:], expected[figure][..., 1:], atol=1e-5, err_msg=figure)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_rows_near_the_lowest_number_are_rows(name):
  data = inputs()
  data["q"][:], data["k"][:] = 0, 0
  data["q"][..., 0], data["k"][..., 0] = 1e19, -3e19  # logits of −3e38
  data["row_scale"] = np.ones_like(data["row_scale"])
  found = run(name, data)
  of_keys = np.arange(1, T + 1)
  np.testing.assert_allclose(found["entropy"], np.broadcast_to(np.log(of_keys), (B, H, T)), atol=1e-6)
  means = np.cumsum(np.asarray(data["v"], np.float64), axis=1) / of_keys[None, :, None, None]
  np.testing.assert_allclose(found["out"], means, atol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("what", [np.inf, np.nan])
def test_rows_with_an_infinite_or_undefined_logit_are_nan(name, what):
  data = inputs()
  data["q"][..., 0], data["k"][0, 40, :, 0] = 1, what
  data["row_scale"] = np.abs(data["row_scale"])
  found = run(name, data)
  assert np.all(np.isnan(found["out"][:, 40:])) and np.all(np.isnan(found["entropy"][..., 40:]))
  assert np.all(np.isfinite(found["out"][:, :40])) and np.all(np.isfinite(found["entropy"][..., :40]))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_scale_of_zero_gives_uniform_rows(name):
  data = inputs()
  data["row_scale"][:] = 0
  assert_near(name, data, 2e-6 * ROUNDING)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16_keys_with_an_offset_in_common_keep_the_gradient_of_queries(name):
  data = inputs(dtype=jnp.bfloat16)
  data["k"] = (data["k"].astype(np.float32) + 8).astype(data["k"].dtype)
  found, expected = run(name, data)["dq"], oracle(data)["dq"]
  assert np.linalg.norm(found - expected) <= 1.5e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("logits", [1.0, 100.0])
def test_bfloat16_keeps_the_gradient_of_temperatures(name, logits):
  data = inputs(logits, dtype=jnp.bfloat16)
  found, expected = run(name, data)["drow_scale"], oracle(data)["drow_scale"]
  # Of sharp rows it is a small difference of large sums.
  assert np.linalg.norm(found - expected) <= 1e-2 * np.linalg.norm(expected)
