"""JAX's modes as test_modes.py tries them: each a function's name → what it gives in that mode, what it must equal.

`jit` is what runs the program: another than jax.jit lowers it for a chip.
"""

import contextlib
import dataclasses
import functools
import math

import jax
from jax import export
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mode_functions import SIZES, TOGETHER, Function, arguments, expected, function


def here(name, jit=None):
  """Op by op."""
  return function(name).both(*arguments(name)), expected(name)


def compiled(name, jit=jax.jit):
  return jit(function(name).both)(*arguments(name)), expected(name)


def under(*settings, run=compiled):
  """With all settings, each a function that makes a context."""

  def mode(name, jit=jax.jit):
    expected(name)  # in the default mode
    with contextlib.ExitStack() as stack:
      for setting in settings:
        stack.enter_context(setting())
      return run(name, jit=jit)

  return mode


X64 = functools.partial(jax.enable_x64, True)
RANKS = functools.partial(jax.numpy_rank_promotion, "raise")
DTYPES = functools.partial(jax.numpy_dtype_promotion, "strict")


def remat(name, jit=jax.jit):
  f = function(name)
  return jit(functools.partial(f.both, fn=jax.checkpoint(f.fn)))(*arguments(name)), expected(name)


def _copies(name):
  """Three different arguments of a function, each array [3, …], and what it gives for each."""

  def three(x):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      return jnp.stack([x, x * jnp.asarray(0.5, x.dtype), x * jnp.asarray(0.25, x.dtype)])
    return jnp.stack([x, jnp.flip(x), x])

  copies, both = jax.tree.map(three, arguments(name)), jax.jit(function(name).both)
  each = [both(*jax.tree.map(lambda x, i=i: x[i], copies)) for i in range(3)]
  return copies, jax.tree.map(lambda *found: jnp.stack(found), *each)


def vmap(name, jit=jax.jit):
  """In over the last axis of each array, out over the first."""
  copies, whole = _copies(name)
  moved = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), copies)
  return jit(jax.vmap(function(name).both, in_axes=-1, out_axes=0))(*moved), whole


def vmap_of_one(name, jit=jax.jit):
  """Over the first argument alone."""
  (first, *rest), cotangents = arguments(name)
  both = lambda x: function(name).both((x, *rest), cotangents)
  three = jax.tree.map(lambda x: jnp.stack([x, x * jnp.asarray(0.5, x.dtype), x]), first)
  each = [jax.jit(both)(jax.tree.map(lambda x, i=i: x[i], three)) for i in range(3)]
  return jit(jax.vmap(both))(three), jax.tree.map(lambda *found: jnp.stack(found), *each)


def scan(name, jit=jax.jit):
  copies, whole = _copies(name)
  step = lambda count, one: (count + 1, function(name).both(*one))
  return jit(lambda *xs: jax.lax.scan(step, jnp.zeros((), jnp.int32), xs)[1])(*copies), whole


def _mesh(shape, names, kind=None):
  """Over the first devices, with axes of a kind; None: jax.make_mesh's own, Explicit."""
  kinds = kind and (kind,) * len(shape)
  return jax.make_mesh(shape, names, axis_types=kinds, devices=jax.devices()[: math.prod(shape)])


def _spec(axes, **places):
  return PartitionSpec(*(places.get(letter) for letter in axes.lstrip("+/")))


def _with_batch_over(mesh_axis, f: Function):
  """f.fn of a part of the batch, and the specs of its arguments and results, and of its gradients."""
  in_specs, out_specs = (tuple(_spec(axes, B=mesh_axis) for axes in group) for group in (f.axes, f.outs))
  whole = lambda x, axes: TOGETHER[axes[0]](x, mesh_axis) if axes[:1] in TOGETHER else x
  return lambda *arrays: tuple(map(whole, f.fn(*arrays), f.outs)), in_specs, out_specs


def shard_map(name, jit=jax.jit):
  """The derivative of a shard_map over the batch, check_vma=True."""
  f = function(name)
  fn, in_specs, out_specs = _with_batch_over("data", f)
  mapped = jax.shard_map(fn, mesh=_mesh((2,), ("data",), AxisType.Auto), in_specs=in_specs, out_specs=out_specs)
  return jit(functools.partial(f.both, fn=mapped))(*arguments(name)), expected(name)


def shard_map_within(name, jit=jax.jit):
  """The derivative within a shard_map over the batch, check_vma=True."""
  f = function(name)
  fn, in_specs, out_specs = _with_batch_over("data", f)
  gradients = tuple(in_specs[i] for i in f.floats()) if f.differentiable else ()
  mapped = jax.shard_map(
    functools.partial(f.both, fn=fn),
    mesh=_mesh((2,), ("data",), AxisType.Auto),
    in_specs=(in_specs, out_specs if f.differentiable else ()),
    out_specs=(out_specs, gradients),
  )
  return jit(mapped)(*arguments(name)), expected(name)


def laid_out(mesh_shape, mesh_axes, kind=None):
  """Batch, and heads where an argument has them, lie over the axes of a mesh in use."""

  def mode(name, jit=jax.jit):
    f, whole = function(name), expected(name)
    places = {letter: axis for letter, axis in zip("BH", mesh_axes, strict=False) if letter in "".join(f.axes)}
    mesh = _mesh(mesh_shape, mesh_axes, kind)
    lay = lambda x, axes: jax.device_put(x, NamedSharding(mesh, _spec(axes, **places)))
    arrays, cotangents = arguments(name)
    with jax.set_mesh(mesh):
      arrays = tuple(map(lay, arrays, f.axes))
      outs, grads = jit(f.both)(arrays, tuple(map(lay, cotangents, f.outs)) if cotangents else ())
      if kind is None and f.differentiable:  # nothing was gathered on the way
        for x, axes in zip(outs, f.outs, strict=True):
          assert jax.typeof(x).sharding.spec == jax.typeof(lay(x, axes)).sharding.spec, (jax.typeof(x), axes)
      return (outs, grads), whole

  return mode


def _cut(f: Function, sizes: dict[str, int]) -> Function:
  """Arguments whose axes of some letters are cut to a size."""
  cut = lambda x, axes: x[tuple(slice(sizes.get(letter)) for letter in axes)] if axes else x
  return dataclasses.replace(f, arrays=tuple(map(cut, f.arrays, f.axes)))


def empty(letter):
  """An axis of no elements: what is left has its shape and is zero; but a mean of nothing and its gradient are NaN."""

  def mode(name, jit=jax.jit):
    f = _cut(function(name), {letter: 0})
    outs, grads = jit(f.both)(f.arrays, f.cotangents())
    if any(axes[:1] == "/" for axes in f.outs):
      outs, grads = jax.tree.map(jnp.nan_to_num, (outs, grads))
    return (outs, grads), jax.tree.map(jnp.zeros_like, jax.eval_shape(f.both, f.arrays, f.cotangents()))

  return mode


def exported(letters, platforms=("cpu",)):
  """By jax.export with symbolic sizes for some letters; called with two sizes of each."""

  def mode(name, jit=jax.jit):
    f, scope = function(name), export.SymbolicScope([f"t <= {SIZES['T']}"] if "T" in letters else [])

    def abstract(x, axes):
      symbols = (({"S": "t"}.get(a, a.lower()) if a in letters else str(n)) for a, n in zip(axes, x.shape, strict=True))
      return jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(symbols), scope=scope), x.dtype)

    arrays = tuple(
      abstract(x, axes) if axes else jax.tree.map(jnp.zeros_like, x) for x, axes in zip(f.arrays, f.axes, strict=True)
    )
    cotangents = jax.eval_shape(f.fn, *arrays) if f.differentiable else ()
    program = export.export(jit(f.both), platforms=platforms)(arrays, cotangents)
    ours, theirs = [], []
    for sizes in ({}, {"B": 1, "T": 7, "S": 7})[: 1 + bool(letters)]:
      cut = _cut(f, {letter: sizes.get(letter) for letter in letters})
      ours.append(program.call(cut.arrays, cut.cotangents()))
      theirs.append(jax.jit(cut.both)(cut.arrays, cut.cotangents()))
    return ours, theirs

  return mode


MODES = {
  "eager": here,
  "enable_x64": under(X64),
  "numpy_rank_promotion=raise": under(RANKS),
  "numpy_dtype_promotion=strict": under(DTYPES),
  "x64, ranks and dtypes": under(X64, RANKS, DTYPES),
  "debug_nans": under(functools.partial(jax.debug_nans, True)),
  "debug_infs": under(functools.partial(jax.debug_infs, True)),
  "default_matmul_precision=bfloat16": under(functools.partial(jax.default_matmul_precision, "bfloat16")),
  "checking_leaks": under(jax.checking_leaks),
  "transfer_guard=disallow": under(functools.partial(jax.transfer_guard, "disallow")),
  "disable_jit": under(functools.partial(jax.disable_jit, True), run=here),
  "checkpoint": remat,
  "vmap": vmap,
  "vmap of one": vmap_of_one,
  "scan": scan,
  "shard_map": shard_map,
  "shard_map within": shard_map_within,
  "mesh of other names": laid_out((2,), ("x",), AxisType.Auto),
  "Explicit mesh": laid_out((2, 2), ("data", "tensor")),
  "Explicit mesh, eager": lambda name, jit=None: laid_out((2, 2), ("x", "y"))(name, jit=lambda fn: fn),
  "export": exported(""),
  "export[b]": exported("B"),
  "export[t]": exported("TS"),
  "export[b, t]": exported("BTS"),
  "export[b, t] for cpu, cuda, tpu": exported("BTS", ("cpu", "cuda", "tpu")),
  "B=0": empty("B"),
  "T=0": empty("T"),
  "S=0": empty("S"),
}


def no_sense(mode: str, name: str) -> str | None:
  """Why a function is not tried in a mode; None if it is."""
  f = function(name)
  axes = "".join(f.axes)
  asked = {"S=0": "S", "T=0": "T", "B=0": "B", "export[b]": "B", "export[t]": "T"}.get(mode)
  asked = "BT" if mode.startswith("export[b, t]") else asked
  if name == "train step":
    kept = ("=", "x64", "debug", "checking", "guard")
    if "=0" in mode or not any(part in mode for part in kept):
      return "the whole program, for jax.jit: on meshes in test_train_step.py"
    if "dtype" in mode:
      return "optax promotes dtypes"
    return None
  if asked and not set(asked) <= set(axes):
    return "has no such axis"
  if name.startswith("kernel"):
    if asked or mode.startswith("export"):
      return "interpreted here: a chip's program is made of attention[gpu], [tpu]; these sizes never reach a kernel"
    if mode in ("disable_jit", "checkpoint") or "Explicit" in mode or "other names" in mode:
      return "attention.py's, before a kernel sees its part"
    if name.startswith("kernel[gpu") and mode.startswith("shard_map"):
      return "JAX's interpreter of GPU kernels gives literals no axes to vary over; what is lowered has its own test"
  if "bfloat16" in name and not any(part in mode for part in ("x64", "dtypes", "dtype", "eager", "shard_map")):
    return "as in float32"
  if name == "head_means[weights]" and mode.startswith("shard_map"):
    return "its weights would be those of one shard alone"
  if name in ("attention[gpu]", "attention[tpu]") and "for cpu, cuda" in mode:
    return "symbolic sizes are attention[blockwise]'s, and whole ones are lowered for its chip alone"
  return None
