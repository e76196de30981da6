"""Arrays that are parts of larger ones: those within `jax.shard_map`, and those that lie over Explicit mesh axes."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def alike(*arrays):
  """The arrays (or None), each as varying over every mesh axis of a `jax.shard_map` over which one of them varies.

  A loop's carry and a custom derivative ask for it. The cast costs nothing; its transpose adds up the gradients of the
  devices. Elsewhere: the arrays.
  """
  every = frozenset().union(*(varies_over(x) for x in arrays if x is not None))
  return tuple(x if x is None else _cast(x, tuple(every - varies_over(x))) for x in arrays)


def take(table, indices, mode=None):
  """Rows of a table, as `jnp.take` has them; over Explicit mesh axes they lie as their indices do."""
  if _explicit_mesh([table, indices]) is None:
    return jnp.take(table, indices, axis=0, mode=mode)
  spec = PartitionSpec(*jax.typeof(indices).sharding.spec, *(None,) * (table.ndim - 1))
  return table.at[indices].get(mode=mode, out_sharding=spec)


def on_each(fn, in_axes: tuple[str, ...], out_axes: tuple[str, ...], cut: str, *arrays):
  """fn(*arrays); where Explicit mesh axes cut one of the axes in `cut`, each device has its own parts of them.

  The types of such arrays say where they lie, and an operation that splits or joins an axis which is cut raises; within
  this, nothing is. Axes that are not in `cut` are gathered.

  Args:
    fn: returns a tuple. It treats the axes in `cut` independently, or adds up over them.
    in_axes, out_axes: a letter for each axis of each array and of each result. A result that lacks a letter of `cut`
      is the sum of those of the parts. Axes of size 1 stay whole.
    cut: letters; each lies as in the first array that says it, unless its mesh axes do not divide it everywhere.
    arrays: or None.
  """
  given = [(x, axes) for x, axes in zip(arrays, in_axes, strict=True) if x is not None]
  mesh = _explicit_mesh([x for x, _ in given])
  if mesh is None or all(name is None for x, _ in given for name in jax.typeof(x).sharding.spec):
    return fn(*arrays)
  places = {letter: _place(letter, mesh, given) for letter in cut}

  def in_spec(x, axes):
    if x is None:
      return None
    cut = (places.get(a) if n != 1 else None for a, n in zip(axes, x.shape, strict=True))
    return PartitionSpec(*cut)

  def added_up(x, axes):
    names = tuple(name for letter, names in places.items() if letter not in axes for name in names)
    return jax.lax.psum(x, names) if names else x

  in_specs = tuple(map(in_spec, arrays, in_axes))
  out_specs = tuple(PartitionSpec(*map(places.get, axes)) for axes in out_axes)

  @jax.jit  # where no mesh is set, this lets what lies on none be laid beside the others
  def on_parts(*arrays):
    lay = lambda x, spec: x if x is None else jax.sharding.reshard(x, NamedSharding(mesh, spec))
    of_parts = lambda *parts: tuple(map(added_up, fn(*parts), out_axes))
    mapped = jax.shard_map(of_parts, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return mapped(*map(lay, arrays, in_specs))

  return on_parts(*arrays)


def _place(letter, mesh, given) -> tuple[str, ...]:
  """The mesh axes that cut the axes of a letter."""
  found, sizes = (), []
  for x, axes in given:
    if letter in axes and x.shape[axes.index(letter)] != 1:
      here = jax.typeof(x).sharding.spec
      names = here[axes.index(letter)] if len(here) else None
      found = found or ((names,) if isinstance(names, str) else tuple(names or ()))
      sizes.append(x.shape[axes.index(letter)])
  shards = math.prod(mesh.shape[name] for name in found)
  return found if all(size % shards == 0 for size in sizes) else ()


def _explicit_mesh(arrays):
  """The mesh over whose Explicit axes one of the arrays lies; None if there is none."""
  meshes = (jax.typeof(x).sharding.mesh for x in arrays)
  return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def varies_over(x) -> frozenset:
  """The mesh axes of a `jax.shard_map` over which an array varies."""
  kind = jax.typeof(x)
  return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # before JAX 0.10, and since


def struct_like(x, shape, dtype) -> jax.ShapeDtypeStruct:
  """A result's shape and dtype that varies over what x varies over."""
  kind = jax.typeof(x)
  if not varies_over(x):
    return jax.ShapeDtypeStruct(shape, dtype)
  if hasattr(kind, "vma"):
    return jax.ShapeDtypeStruct(shape, dtype, vma=kind.vma)
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind.manual_axis_type)


def _cast(x, axes: tuple[str, ...]):
  if not axes:
    return x
  return jax.lax.pcast(x, axes, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(x, axes)
