"""JAX's modes as test_modes.py tries them: each gives what a function made in it, and what it must equal."""

import contextlib
import functools

import jax
from jax import export
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from mode_functions import SIZES, TOGETHER, Function, arguments, expected, function
import numpy as np


def here(name: str):
  """In the mode that is set, op by op."""
  return function(name).both(*arguments(name)), expected(name)


def compiled(name: str):
  return jax.jit(function(name).both)(*arguments(name)), expected(name)


def under(*settings, run=compiled):
  """In the context of all `settings`, functions that make one."""

  def mode(name):
    expected(name)  # in the default mode
    with contextlib.ExitStack() as stack:
      for setting in settings:
        stack.enter_context(setting())
      return run(name)

  return mode


def remat(name: str):
  f = function(name)
  both = functools.partial(f.both, fn=jax.checkpoint(f.fn))
  return jax.jit(both)(*arguments(name)), expected(name)


def _copies(f: Function):
  """Three of the arguments, which differ: each [3, …]."""

  def three(x):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      return jnp.stack([x, x * jnp.asarray(0.5, x.dtype), x * jnp.asarray(0.25, x.dtype)])
    return jnp.stack([x, jnp.flip(x), x])

  arguments = jax.tree.map(three, (f.arrays, f.cotangents()))
  one_by_one = [jax.jit(f.both)(*jax.tree.map(lambda x, i=i: x[i], arguments)) for i in range(3)]
  return arguments, jax.tree.map(lambda *parts: jnp.stack(parts), *one_by_one)


def vmap(name: str):
  f = function(name)
  copies, whole = _copies(f)
  moved = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), copies)
  return jax.jit(jax.vmap(f.both, in_axes=-1, out_axes=0))(*moved), whole


def vmap_of_one(name: str):
  """The first argument alone is mapped."""
  f = function(name)
  (arrays, cotangents), _ = _copies(f)
  rest = f.arrays[1:]
  both = lambda first: f.both((first, *rest), f.cotangents())
  each = [jax.jit(both)(jax.tree.map(lambda x, i=i: x[i], arrays[0])) for i in range(3)]
  return jax.jit(jax.vmap(both))(arrays[0]), jax.tree.map(lambda *parts: jnp.stack(parts), *each)


def scan(name: str):
  f = function(name)
  copies, whole = _copies(f)
  step = lambda count, one: (count + 1, f.both(*one))
  return jax.jit(lambda *a: jax.lax.scan(step, jnp.zeros((), jnp.int32), a)[1])(*copies), whole


def _mesh(*shape, axis_types=None):
  names = ("data", "tensor")[: len(shape)]
  return jax.make_mesh(shape, names, axis_types=axis_types, devices=jax.devices()[: int(np.prod(shape))])


AUTO, EXPLICIT = jax.sharding.AxisType.Auto, None  # make_mesh's own


def _spec(axes: str, **meshed) -> PartitionSpec:
  return PartitionSpec(*(meshed.get(letter) for letter in axes.lstrip("+/")))


def _shard_mapped(f: Function, whole=True):
  """fn and both within a shard_map over the batch."""
  in_specs, out_specs = (tuple(_spec(a, B="data") for a in axes) for axes in (f.axes, f.outs))
  together = lambda x, axes: TOGETHER[axes[0]](x, "data") if axes[:1] in TOGETHER else x
  fn = lambda *arrays: tuple(map(together, f.fn(*arrays), f.outs))
  floats = tuple(
    spec
    for spec, x in zip(in_specs, f.arrays, strict=True)
    if jnp.issubdtype(jax.tree.leaves(x)[0].dtype, jnp.inexact) and f.differentiable
  )
  cotangents = out_specs if f.differentiable else ()
  return fn, in_specs, out_specs, cotangents, floats


def shard_map(name: str):
  """The derivative of a shard_map."""
  f = function(name)
  fn, in_specs, out_specs, _, _ = _shard_mapped(f)
  mapped = jax.shard_map(fn, mesh=_mesh(2, axis_types=(AUTO,)), in_specs=in_specs, out_specs=out_specs)
  return jax.jit(functools.partial(f.both, fn=mapped))(*arguments(name)), expected(name)


def shard_map_within(name: str):
  """The derivative within a shard_map."""
  f = function(name)
  fn, in_specs, out_specs, cotangents, floats = _shard_mapped(f)
  both = functools.partial(f.both, fn=fn)
  mesh = _mesh(2, axis_types=(AUTO,))
  mapped = jax.shard_map(both, mesh=mesh, in_specs=(in_specs, cotangents), out_specs=(out_specs, floats))
  return jax.jit(mapped)(*arguments(name)), expected(name)


def explicit(name: str, shape=(2, 2), run=jax.jit):
  """Batch and heads lie over axes of jax.make_mesh's own type."""
  f = function(name)
  whole, cotangents = expected(name), f.cotangents()
  mesh = _mesh(*shape)
  lay = lambda x, axes: jax.device_put(x, NamedSharding(mesh, _spec(axes, B="data", H="tensor")))
  with jax.set_mesh(mesh):
    arrays = tuple(map(lay, f.arrays, f.axes))
    if f.differentiable:
      cotangents = tuple(map(lay, cotangents, f.outs))
    return run(f.both)(arrays, cotangents), whole


def explicit_eager(name: str):
  return explicit(name, run=lambda both: both)


def auto(name: str):
  """A mesh in use whose axes are named as the package's are not, with the batch over one of them."""
  f = function(name)
  whole, cotangents = expected(name), f.cotangents()
  mesh = jax.make_mesh((2,), ("x",), axis_types=(AUTO,), devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    arrays = tuple(
      jax.device_put(x, NamedSharding(mesh, _spec(a, B="x"))) for x, a in zip(f.arrays, f.axes, strict=True)
    )
    return jax.jit(f.both)(arrays, cotangents), whole


def _resized(f: Function, letters: str, size):
  """Arguments whose axes of these letters are cut to a size."""

  def cut(x, axes):
    return x[tuple(slice(size) if letter in letters else slice(None) for letter in axes)] if axes else x

  arrays = tuple(map(cut, f.arrays, f.axes))
  return dataclasses_replace(f, arrays)


def dataclasses_replace(f, arrays):
  import dataclasses

  return dataclasses.replace(f, arrays=arrays)


def empty(letters: str):
  """Axes of no elements: what is left is of the right shape and zero, a mean of nothing NaN."""

  def mode(name):
    f = _resized(function(name), letters, 0)
    ours = jax.jit(f.both)(f.arrays, f.cotangents())
    return ours, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f.both, f.arrays, f.cotangents()))

  return mode


def exported(letters: str, platforms=("cpu",)):
  """Through jax.export with a symbolic size for each of the letters; called with two sizes."""
  sizes = {"B": (2, 1), "T": (24, 11), "S": (24, 11)}

  def mode(name):
    f = function(name)
    scope = export.SymbolicScope([f"{a.lower()} <= {SIZES[a]}" for a in letters if a == "T"])

    def abstract(x, axes):
      text = ", ".join(symbol(a, letters) if a in letters else str(n) for a, n in zip(axes, x.shape, strict=True))
      return jax.ShapeDtypeStruct(export.symbolic_shape(text, scope=scope), x.dtype)

    def symbol(a, letters):
      return "t" if a == "S" else a.lower()

    def trees(x, axes):
      return jax.tree.map(lambda leaf: abstract(leaf, axes) if axes else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)

    arrays = tuple(map(trees, f.arrays, f.axes))
    cotangents = jax.eval_shape(f.fn, *arrays) if f.differentiable else ()
    program = export.export(jax.jit(f.both), platforms=platforms)(arrays, cotangents)
    ours, theirs = [], []
    for i in range(2):
      cut = f
      for letter in letters:
        cut = _resized(cut, letter, sizes[letter][i])
      ours.append(program.call(cut.arrays, cut.cotangents()))
      theirs.append(jax.jit(cut.both)(cut.arrays, cut.cotangents()))
    return ours, theirs

  return mode


MODES = {
  "eager": here,
  "x64": under(functools.partial(jax.enable_x64, True)),
  "x64 eager": under(functools.partial(jax.enable_x64, True), run=here),
  "rank_promotion": under(functools.partial(jax.numpy_rank_promotion, "raise")),
  "dtype_promotion": under(functools.partial(jax.numpy_dtype_promotion, "strict")),
  "strict x64": under(
    functools.partial(jax.numpy_dtype_promotion, "strict"),
    functools.partial(jax.numpy_rank_promotion, "raise"),
    functools.partial(jax.enable_x64, True),
  ),
  "debug_nans": under(functools.partial(jax.debug_nans, True)),
  "debug_infs": under(functools.partial(jax.debug_infs, True)),
  "matmul_precision": under(functools.partial(jax.default_matmul_precision, "bfloat16")),
  "tracer_leaks": under(functools.partial(jax.checking_leaks)),
  "transfer_guard": under(functools.partial(jax.transfer_guard, "disallow")),
  "disable_jit": under(functools.partial(jax.disable_jit, True), run=here),
  "remat": remat,
  "vmap": vmap,
  "vmap of one": vmap_of_one,
  "scan": scan,
  "shard_map": shard_map,
  "shard_map within": shard_map_within,
  "auto mesh": auto,
  "explicit": explicit,
  "explicit eager": explicit_eager,
  "export": exported(""),
  "export[b]": exported("B"),
  "export[t]": exported("TS"),
  "export[b, t]": exported("BTS"),
  "export[cpu, cuda, tpu]": exported("", ("cpu", "cuda", "tpu")),
  "export[b, t, platforms]": exported("BTS", ("cpu", "cuda", "tpu")),
  "B=0": empty("B"),
  "T=0": empty("T"),
  "S=0": empty("S"),
  "T=S=0": empty("TS"),
}
