"""The fused implementations with their derivatives, and the choice among them.

Letters in array names: B batch, T query length, S key length, H heads, G key heads, K head width.
"""

import functools
import warnings

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from entropy_attn import parts
from entropy_attn.kernels import Forward, blockwise, transposed

_PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}  # of the Pallas kernels


def attend(kernel, options, with_lse, q, k, v, row_scale_HxT, keep, bias):
  """Attention by `kernel`, one that `choose` gave.

  Args:
    options: items of causal, window, softcap, as in `blockwise.forward`.
    with_lse: whether the log-sum-exp is wanted.
    q, k, v, row_scale_HxT, keep, bias: as there.

  Returns:
    out [B, T, H, V] and entropy [B, H, T], differentiable, and log-sum-exp [B, H, T], a constant to derivatives.
  """
  q, k, v, row_scale_HxT, keep, bias = parts.alike(q, k, v, row_scale_HxT, keep, bias)
  found = _attend(kernel, options, False, q, k, v, row_scale_HxT, keep, bias)
  if not with_lse:
    return found.out_BxTxHxK, found.entropy_BxHxT
  lse_BxHxT = jax.lax.stop_gradient(found.largest_BxHxT + found.log_sum_BxHxT)
  if kernel != "blockwise":
    lse_BxHxT = jnp.where(_sees_a_key(keep, q.shape[1], k.shape[1], **dict(options)), lse_BxHxT, -jnp.inf)
  return found.out_BxTxHxK, found.entropy_BxHxT, lse_BxHxT


def _sees_a_key(keep_Bx1x1xS, T, S, *, causal, window, softcap):
  """Whether each row may attend to any key, [B or 1, 1, T]."""
  del softcap
  left, right = (S + T, S + T) if window is None else window
  keep_Bx1x1xS = jnp.ones((1, 1, 1, S), bool) if keep_Bx1x1xS is None else keep_Bx1x1xS
  before = jnp.pad(jnp.cumsum(keep_Bx1x1xS[:, :, 0], axis=-1, dtype=jnp.int32), [(0, 0), (0, 0), (1, 0)])
  rows_T = jnp.arange(T)
  first, end = jnp.clip(rows_T - left, 0, S), jnp.clip(rows_T + (0 if causal else right) + 1, 0, S)
  return before[..., end] > before[..., first]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _attend(kernel, options, with_rest, *operands) -> Forward:
  found = _per_platform(kernel, "forward", operands, dict(options) | {"with_rest": with_rest})
  entropy_BxHxT = found.entropy_BxHxT
  return found._replace(entropy_BxHxT=jnp.where(entropy_BxHxT < 0, 0, entropy_BxHxT))  # by rounding alone; NaN stays


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(kernel, options, with_rest, primals, tangents):
  """Tangents of out and entropy by plain JAX, their transpose by the kernel's backward pass."""
  found = _attend(kernel, options, with_rest or kernel != "blockwise", *primals)
  moving = [i for i, t in enumerate(tangents) if t is not None and not isinstance(t, SymbolicZero)]

  def forward(*moved):
    operands = list(primals)
    for i, x in zip(moving, moved, strict=True):
      operands[i] = x
    plain = blockwise.forward(*operands, **dict(options))
    return plain.out_BxTxHxK, plain.entropy_BxHxT

  def transpose(cotangents):
    gradients = _gradients(kernel, options, found, primals, *cotangents)
    return [gradients[i] for i in moving]

  dout, dentropy = transposed.linear(
    lambda dx: jax.jvp(forward, [primals[i] for i in moving], dx)[1],
    transpose,
    [tangents[i] for i in moving],
    (found.out_BxTxHxK, found.entropy_BxHxT),
  )
  if not with_rest:
    found = found._replace(rest_BxTxHxK=None)
  constant = jax.tree.map(jnp.zeros_like, found)
  return found, constant._replace(out_BxTxHxK=dout, entropy_BxHxT=dentropy)


def _gradients(kernel, options, found, operands, *cotangents):
  """Of q, k, v, row_scale, keep and bias."""
  if kernel == "blockwise":
    return _gradients_of(kernel, options, found, operands, cotangents)
  return _kernel_gradients(kernel, options, found, operands, cotangents)


def _gradients_of(kernel, options, found, operands, cotangents):
  *operands, bias = operands
  arrays = (*operands, found, *cotangents, bias)
  dq, dk, dv, drow_scale_BxHxT, *dbias = _per_platform(kernel, "backward", arrays, dict(options))
  return dq, dk, dv, jnp.sum(drow_scale_BxHxT, axis=0), None, dbias[0] if dbias else None


_kernel_gradients = jax.custom_jvp(_gradients_of, nondiff_argnums=(0, 1))


@_kernel_gradients.defjvp
def _kernel_gradients_jvp(kernel, options, primals, tangents):
  """What a kernel's backward pass has no derivatives of, blockwise's has; it needs nothing of `found`."""
  plain = functools.partial(_gradients_of, "blockwise", options, None)
  return _kernel_gradients(kernel, options, *primals), jax.jvp(plain, primals[1:], tangents[1:])[1]


def _per_platform(kernel, direction, operands, options):
  """`direction` of the kernel on the platform that the program is lowered for; of `blockwise` on any other."""
  plain = functools.partial(getattr(blockwise, direction), **options)
  if kernel == "blockwise":
    return plain(*operands)
  if direction == "forward":
    plain = functools.partial(_as_pallas, **options)
  pallas = functools.partial(getattr(_module(kernel), direction), **options)

  def fused(q, k, v, row_scale_HxT, keep, *rest_and_bias):
    *rest, _ = rest_and_bias
    keep_BxS = None if keep is None else jnp.broadcast_to(keep[:, 0, 0], (len(q), keep.shape[-1]))
    return pallas(q, k, v, row_scale_HxT, keep_BxS, *rest)

  return jax.lax.platform_dependent(*operands, default=plain, **{_PLATFORMS[kernel]: fused})


def _as_pallas(*operands, **options) -> Forward:
  """`blockwise.forward` with a figure in each field that the Pallas kernels fill; its own backward pass reads none."""
  found = blockwise.forward(*operands, **options)
  return found._replace(unscaled_BxHxT=found.largest_BxHxT)


def _module(kernel):
  # Only where they are used: importing Pallas takes longer than the rest of this package.
  if kernel == "gpu":
    from entropy_attn.kernels import gpu

    return gpu
  from entropy_attn.kernels import tpu

  return tpu


def choose(implementation, q, k, v, keep, bias) -> str:
  """The kernel that takes these inputs, the asked one first."""
  backend = jax.default_backend()
  if implementation == "auto":
    implementation = backend if backend in _PLATFORMS else "blockwise"
  if implementation == "blockwise":
    return implementation
  reason = _module(implementation).unsupported(q, k, v)
  if keep is not None and keep.shape[1:3] != (1, 1):
    reason = f"a mask of shape {keep.shape}, with an axis of heads or queries"
  if bias is not None:
    reason = "a bias"
  if not all(isinstance(n, int) for n in (*q.shape, *k.shape)):
    reason = "symbolic sizes"
  if reason:
    _warn_once(f"attention: implementation={implementation!r} cannot take {reason}; 'blockwise' takes its place")
    return "blockwise"
  if backend != implementation:
    _warn_once(f"attention: implementation={implementation!r} is for {implementation.upper()}s; here 'blockwise' runs")
  return implementation


@functools.cache
def _warn_once(message: str) -> None:
  warnings.warn(message, stacklevel=4)
