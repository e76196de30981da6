"""Compiles the kernels and the whole training step for an NVIDIA H100 and a TPU v5e, neither of which need be there.

    make aot        (its own virtual environment, .venv-aot; 3 minutes)

It tells what a compiler can tell: tensor-core instructions, registers and spills, shared memory, buffers. Not time.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

# Before jax starts: its own platform is the CPU, and nobody asks a cloud or a driver about chips.
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TPU_SKIP_MDS_QUERY": "1"}
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TF_CPP_MIN_LOG_LEVEL": "3"}

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.programs import gathered_in_attention, moved_bytes, square_buffers
from entropy_attn import config as config_lib
from entropy_attn import sharding
from entropy_attn.kernels import Forward, gpu, tpu
from entropy_attn.report import tables
from entropy_attn.train_step import trace_train_step

# An H100 SXM, by NVIDIA's data sheet.
_H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 85899345920 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  runtime_version: "12.9.0" driver_version: "12.9.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
H100_SHARED_BYTES = 232_448  # the most a block may have
PLATFORMS = {"h100": "cuda", "v5e": "tpu"}
KERNELS = {"h100": gpu, "v5e": tpu}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What `ptxas` and the launch say of one GPU kernel."""

  name: str
  registers: int
  spilled_bytes: int
  shared_bytes: int
  tensor_cores: str  # wgmma, mma (Ampere's), or none


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program: its text, what it holds beside arguments and results, and (H100) its Pallas kernels."""

  text: str
  temporary_bytes: int
  total_bytes: int
  least_bytes: int  # arguments and results
  kernels: tuple[Kernel, ...] = ()


@functools.cache
def devices(chip: str):
  """All devices of an H100 node of 8, or of a v5e slice of 16."""
  if chip == "h100":
    return topologies.get_topology_desc("h100", "cuda", target_config=_H100, topology="1x1x8").devices
  return topologies.get_topology_desc("v5e:4x4", "tpu").devices


def compile_traced(chip: str, traced) -> Compiled:
  """Lowers and compiles for the chip what was traced under a mesh of its devices."""
  lowered = traced.lower(lowering_platforms=(PLATFORMS[chip],))
  with tempfile.TemporaryDirectory() as folder:
    dump = pathlib.Path(folder)
    options = {"xla_dump_to": str(dump), "xla_gpu_cuda_data_dir": str(_nvcc())} if chip == "h100" else None
    program = lowered.compile(compiler_options=options)
    kernels = _kernels(dump) if chip == "h100" else ()
  memory = program.memory_analysis()
  least = memory.argument_size_in_bytes + memory.output_size_in_bytes
  return Compiled(
    program.as_text(),
    memory.temp_size_in_bytes,
    least + memory.temp_size_in_bytes - memory.alias_size_in_bytes,
    least,
    tuple(sorted(kernels, key=str)),
  )


def attention(
  chip: str, B, T, H, G, K, dtype, *, backward, keep=False, with_entropy=True, x64=False, **options
) -> Compiled:
  """The chip's kernel alone on one device; for its forward or its backward pass.

  Args:
    keep: with a mask of keys.
    x64: under jax_enable_x64.
    options: of the kernel: causal (True unless given), window, softcap.
  """
  options = {"causal": True} | options
  mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=devices(chip)[:1])
  a = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
  q, k, rows = a(dtype, B, T, H, K), a(dtype, B, T, G, K), a(jnp.float32, B, H, T)
  operands = (q, k, k, a(jnp.float32, H, T), a(jnp.bool_, B, T) if keep else None)
  if backward:
    entropy, dentropy = (rows, rows) if with_entropy else (None, None)
    operands += (Forward(q, entropy, rows, rows, None if dtype == "float32" else q, rows), q, dentropy)
    fn = functools.partial(KERNELS[chip].backward, **options)
  else:
    fn = functools.partial(KERNELS[chip].forward, with_entropy=with_entropy, with_rest=True, **options)
  with jax.set_mesh(mesh), jax.enable_x64(x64):
    return compile_traced(chip, jax.jit(fn).trace(*operands))


def train_step(chip: str, *, T: int, batch_size: int, attention: str | None = None, **mesh_axes: int) -> Compiled:
  """The whole step of EReg(SM(t)+ScFuFFN), GPT-2 small, bfloat16, regulariser on, on one device or a mesh of several.

  The vocabulary is 16,000: no T divides it, so that a square buffer is one of attention.

  Args:
    attention: the implementation; None: the chip's kernel.
    mesh_axes: data, fsdp, tensor; each 1 unless given.
  """
  c = config_lib.languini("1.2B")
  c.model.update(norm="none", activation="identity", ffn="fused", residual_scaling=True, dtype="bfloat16")
  c.model.update(temperature="per_head_position", context_length=T, max_positions=T, vocab_size=16_000)
  c.model.attention = attention or {"h100": "gpu", "v5e": "tpu"}[chip]
  c.regularizer.weight = 5e-5
  c.train.update(batch_size=batch_size, accumulation=1)
  c.eval.batch_size = batch_size
  c.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | mesh_axes)
  config_lib.validate(c)
  count = c.mesh.data * c.mesh.fsdp * c.mesh.tensor
  mesh = sharding.make_mesh(c, devices(chip)[:count])
  with jax.set_mesh(mesh), warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="attention: ")  # that here it would run blockwise: it does not run here
    return compile_traced(chip, trace_train_step(c, mesh))


def _nvcc() -> pathlib.Path:
  import nvidia.cuda_nvcc

  return pathlib.Path(next(iter(nvidia.cuda_nvcc.__path__)))


def _kernels(dump: pathlib.Path) -> list[Kernel]:
  """The Pallas kernels of a dumped compilation."""
  shared = {}
  for path in dump.glob("*thunk_sequence.txt"):
    for name, size in re.findall(r"(\w*attention_\w+) grid.*shared_memory: (\d+) bytes", path.read_text()):
      shared[name] = int(size)
  found = []
  for path in dump.glob("*.ptx"):
    ptx = path.read_text()
    entry = re.search(r"\.entry (\w*attention_\w+)\(", ptx)
    if not entry:
      continue
    command = [_nvcc() / "bin" / "ptxas", "-v", "-arch=sm_90a", path, "-o", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (int(re.search(p, told)[1]) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    cores = next((name for name, op in (("wgmma", "wgmma.mma_async"), ("mma", "mma.sync")) if op in ptx), "none")
    found.append(Kernel(entry[1], registers, spilled, shared[entry[1]], cores))
  return found


KERNEL_CASES = [(64, "bfloat16"), (128, "bfloat16"), (256, "bfloat16"), (64, "float32"), (128, "float32")]
# Plain, as the model calls them; and all that a call may ask for at once.
KERNEL_OPTIONS = {
  "": {},
  "padding": {"keep": True},
  "no entropy": {"with_entropy": False},
  "padding, window, soft cap": {"keep": True, "causal": False, "window": (100, 100), "softcap": 50.0, "x64": True},
}
WIDEST = {"h100": [("bfloat16", 256), ("float32", 128)], "v5e": [("bfloat16", 512), ("float32", 384)]}
STEP_CASES = [(512, 32), (2048, 8), (32768, 1)]


KERNEL_HEAD = (
  "H100 kernel",
  "asked",
  "head width",
  "dtype",
  "registers",
  "spilled bytes",
  "shared KiB",
  "tensor cores",
)
PROGRAM_HEAD = ("chip", "program", "T", "temporary MiB", "in all GiB", "buffers of T × T", "gathered in attention")
MOVED_HEAD = ("chip", "program", "T", "arguments and results, MiB", "read and written, MiB", "ratio")


def report() -> dict:
  """What the compilers say of every kernel and program; each is named on standard error while it is compiled."""
  kernels, programs = [], []
  for K, dtype in KERNEL_CASES:
    for asked, options in KERNEL_OPTIONS.items():
      for backward in (False, True):
        _say(f"H100 kernel, {dtype}, width {K}, {'backward' if backward else 'forward'} {asked}")
        for kernel in attention("h100", 2, 1024, 4, 4, K, dtype, backward=backward, **options).kernels:
          kernels.append({"head_width": K, "dtype": dtype, "asked": asked} | dataclasses.asdict(kernel))

  def add(chip, program, T, compile_):
    _say(f"{chip}, {program}, T={T:,}")
    compiled = compile_()
    square, gathered = square_buffers(compiled.text, T), gathered_in_attention(compiled.text, T)
    programs.append(
      {"chip": chip, "program": program, "T": T, "square_buffers": square, "gathered": gathered}
      | {"temporary_bytes": compiled.temporary_bytes, "total_bytes": compiled.total_bytes}
      | {"kernels": sorted({kernel.name for kernel in compiled.kernels})}
    )
    if program.startswith("attention"):  # no loops but a kernel's own
      programs[-1] |= {"least_bytes": compiled.least_bytes, "moved_bytes": moved_bytes(compiled.text)}

  def highest(chip, dtype, K, backward):
    with jax.default_matmul_precision("highest"):  # what some users set: nothing to these kernels
      return attention(chip, 1, 2048, 4, 2, K, dtype, backward=backward, keep=True)

  def everything(chip, dtype, backward):
    return attention(chip, 1, 2048, 4, 2, 64, dtype, backward=backward, **KERNEL_OPTIONS["padding, window, soft cap"])

  for chip in PLATFORMS:
    for dtype in ("bfloat16", "float32"):
      for T in (1000, 2048, 32768):  # the first is no multiple of a tile
        for backward in (False, True):
          alone = functools.partial(attention, chip, 1, T, 12, 4, 64, dtype, backward=backward, keep=T == 1000)
          add(chip, f"attention, {dtype}, {'backward' if backward else 'forward'}", T, alone)
      for backward in (False, True):
        name = f"attention, {dtype}, padding, window, soft cap, x64, {'backward' if backward else 'forward'}"
        add(chip, name, 2048, functools.partial(everything, chip, dtype, backward))
    for dtype, K in WIDEST[chip]:
      for backward in (False, True):
        name = f"attention, {dtype}, width {K}, {'backward' if backward else 'forward'}"
        add(chip, name, 2048, functools.partial(highest, chip, dtype, K, backward))
    for T, batch_size in STEP_CASES:
      step = functools.partial(train_step, chip, T=T, batch_size=batch_size)
      add(chip, f"training step, batch {batch_size}", T, step)
    step = functools.partial(train_step, chip, T=512, batch_size=32, data=2, fsdp=2, tensor=2)
    add(chip, "training step, batch 32, on data 2 × fsdp 2 × tensor 2", 512, step)
  step = functools.partial(train_step, "h100", T=512, batch_size=32, attention="reference")
  add("h100", "training step, batch 32, reference attention", 512, step)
  return {"kernels": kernels, "programs": programs}


def text(found: dict) -> str:
  """The report as tables."""
  kernels = [
    (
      k["name"], k["asked"], str(k["head_width"]), k["dtype"], str(k["registers"]),
      str(k["spilled_bytes"]), f"{k['shared_bytes'] / 2**10:.0f}", k["tensor_cores"],
    )
    for k in found["kernels"]
  ]  # fmt: skip
  programs = [
    (
      p["chip"], p["program"], f"{p['T']:,}", f"{p['temporary_bytes'] / 2**20:,.0f}", f"{p['total_bytes'] / 2**30:.2f}",
      str(len(p["square_buffers"])), str(len(p["gathered"])),
    )
    for p in found["programs"]
  ]  # fmt: skip
  moved = [
    (
      p["chip"], p["program"], f"{p['T']:,}", f"{p['least_bytes'] / 2**20:,.1f}", f"{p['moved_bytes'] / 2**20:,.1f}",
      f"{p['moved_bytes'] / p['least_bytes']:.2f}",
    )
    for p in found["programs"] if "moved_bytes" in p
  ]  # fmt: skip
  parts = [
    tables.markdown(KERNEL_HEAD, kernels, left=(0, 1, 3, 7)),
    tables.markdown(PROGRAM_HEAD, programs, left=(0, 1)),
  ]
  return "\n\n".join([*parts, tables.markdown(MOVED_HEAD, moved, left=(0, 1))])


def _say(what: str) -> None:
  print(f"{what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", type=pathlib.Path, help="writes the same numbers there")
  arguments = parser.parse_args()
  found = report()
  print(text(found))
  if arguments.json:
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
