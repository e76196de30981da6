"""The device mesh, and which array axis lies along which of its axes."""

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from entropy_attn.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
  """Mesh axes of each logical axis, of activations (first four) and parameters; None: not sharded."""

  batch: tuple[str, ...] = ("data", "fsdp")
  length: None = None
  stream: None = None
  head_width: None = None
  embed: str = "fsdp"
  heads: str = "tensor"
  ffn: str = "tensor"
  vocab: str = "tensor"


RULES = Rules()

# Input and output axes of each linear of a block; its bias, gain and singular vector have the output's.
_LINEARS = {
  "q": ("embed", "heads"),
  "k": ("embed", "heads"),
  "v": ("embed", "heads"),
  "o": ("heads", "embed"),
  "up": ("embed", "ffn"),
  "down": ("ffn", "embed"),
  "fused": ("embed", "ffn"),
}
_OTHERS = {
  "token_embedding": ("vocab", "embed"),
  "position_embedding": (None, "embed"),
  "head": ("embed", "vocab"),
  "temperature": (None, "heads", None),
  "thresholds": (None, "heads"),
  "strengths": (None, "heads"),
}
# Of norms, residual scaling, a curriculum, and Muon's polynomial.
_REPLICATED = ("scale", "bias", "alpha", "beta", "fade", "inverse_std", "kept_bias", "ns_coeffs")


def make_mesh(config: ConfigDict, devices=None) -> Mesh:
  """The data × fsdp × tensor mesh of config.mesh over `devices` (default: all).

  Raises:
    UserError: if the mesh does not fit the devices, or batch or heads do not divide over it.
  """
  devices = jax.devices() if devices is None else devices
  data, fsdp, tensor = (config.mesh[name] for name in MESH_AXES)
  if data == -1:
    data = len(devices) // (fsdp * tensor)
  if data * fsdp * tensor != len(devices):
    raise UserError(
      f"mesh.data={config.mesh.data} × mesh.fsdp={fsdp} × mesh.tensor={tensor} does not fit {len(devices)} device(s)"
    )
  shards = data * fsdp
  microbatch = config.train.batch_size // config.train.accumulation
  for name, size in (
    ("train.batch_size / train.accumulation", microbatch),
    ("eval.batch_size", config.eval.batch_size),
  ):
    if size % shards:
      raise UserError(f"{name} = {size} is not divisible by the mesh's data × fsdp = {data} × {fsdp}")
  if config.model.num_heads % tensor:
    raise UserError(f"model.num_heads={config.model.num_heads} is not divisible by mesh.tensor={tensor}")
  return jax.make_mesh((data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(RULES.batch))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def laid_out(abstract_state, mesh: Mesh):
  """A train state's shapes and dtypes with the sharding of each leaf, by the names on its path.

  Optimizer moments lie as their parameters. An axis whose size the mesh does not divide stays unsharded.
  """

  def with_sharding(path, leaf):
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    spec = _spec(mesh.shape, logical_axes(names, leaf.ndim), leaf.shape)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree_util.tree_map_with_path(with_sharding, abstract_state)


def of(abstract_state):
  """The shardings of a state that `laid_out` returned."""
  return jax.tree.map(lambda leaf: leaf.sharding, abstract_state)


def logical_axes(names: list[str], ndim: int) -> tuple[str | None, ...]:
  """Logical axes of the leaf at a path of names.

  Raises:
    KeyError: for a parameter that the tables do not know: a new one must be given its axes.
  """
  name, parent = names[-1], names[-2] if len(names) > 1 else ""
  if ndim == 0:
    return ()
  if parent in _LINEARS:
    into, out = _LINEARS[parent]
    return ((None, into, out) if name == "kernel" else (None, out))[:ndim]  # a gain of a whole linear has no outputs
  if name in _OTHERS:
    return _OTHERS[name][:ndim]  # a temperature per head has no axis of positions
  if name in _REPLICATED:
    return (None,) * ndim
  raise KeyError(f"no sharding is known for {'/'.join(names)}")


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """x laid out over the mesh in use (`jax.set_mesh`) by its logical axes; x itself if there is none."""
  sizes = _in_use()
  return x if math.prod(sizes.values()) == 1 else jax.lax.with_sharding_constraint(x, _spec(sizes, axes, x.shape))


def batch_shards(batch_size: int) -> int:
  """Parts that the mesh in use cuts a batch into; 1 if it does not divide the batch."""
  sizes = _in_use()
  shards = math.prod(sizes.get(axis, 1) for axis in RULES.batch)
  return shards if batch_size % shards == 0 else 1


def per_shard(fn, in_axes, out_axes, *arrays):
  """fn(*arrays) on each device's own parts: fn must treat what its axes cut independently.

  The compiler cannot see into a fused kernel or across a loop over the batch: it would gather the arrays instead.

  Args:
    in_axes, out_axes: logical axes of each array and of each output.
  """
  sizes = _in_use()
  if math.prod(sizes.values()) == 1:
    return fn(*arrays)
  in_specs = tuple(_spec(sizes, axes, x.shape) for axes, x in zip(in_axes, arrays, strict=True))
  outs = jax.eval_shape(fn, *arrays)
  out_specs = tuple(_spec(sizes, axes, x.shape) for axes, x in zip(out_axes, outs, strict=True))
  return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, axis_names=set(sizes))(*arrays)


def _in_use() -> dict[str, int]:
  """The axes of the mesh in use (`jax.set_mesh`) that are laid out by the rules, and their sizes.

  Not those within a `jax.shard_map` over them, nor Explicit ones: the types of the arrays say what lies over these.
  """
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  return {name: mesh.shape[name] for name, kind in kinds if name in MESH_AXES and kind == AxisType.Auto}


def _spec(sizes: Mapping[str, int], axes, shape) -> PartitionSpec:
  """Mesh axes of each logical axis; an axis whose size the mesh does not divide stays whole."""
  spec = []
  for axis, size in zip(axes, shape, strict=False):
    wanted = getattr(RULES, axis) if axis else None
    names = tuple(name for name in ((wanted,) if isinstance(wanted, str) else wanted or ()) if name in sizes)
    whole = not names or size % math.prod(sizes[name] for name in names)
    spec.append(None if whole else names if len(names) > 1 else names[0])
  return PartitionSpec(*spec)


def process_shard(mesh: Mesh) -> tuple[int, int]:
  """(index, count): which of how many equal parts of each batch this process reads.

  Processes that differ only along the tensor axis read the same part.
  """
  owners: dict[int, set[int]] = {}  # batch shard → processes that hold it
  rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
  for shard, devices in enumerate(rows):
    owners[shard] = {device.process_index for device in devices}
  mine = [shard for shard, processes in owners.items() if jax.process_index() in processes]
  count = len(rows) // len(mine)
  return mine[0] // len(mine), count


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's part of a batch as global arrays."""
  return {k: jax.make_array_from_process_local_data(batch_sharding(mesh), v) for k, v in batch.items()}
