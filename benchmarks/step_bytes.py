"""Bytes that the program of a training step moves, beside the least that its arithmetic needs.

    python -m benchmarks.step_bytes                                    (the CPU's, of `benchmarks.train_step`)
    .venv-aot/bin/python -m benchmarks.step_bytes --chips=h100,v5e     (of `benchmarks.aot`; `make aot` installs it)

A compiler's own count takes each loop once; this one multiplies by the trips that the program tells. What an operation
reads and writes counts whole, whatever a cache holds of it; of a slice, and of an update of a part, the part alone.

The least: parameters are read forward and backward; a gradient is written, and read for its norm and for the update; an
update reads and writes parameter and both moments; what the backward pass keeps of a layer is written and read once.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import math
import re
import warnings

import jax

from benchmarks import train_step
from entropy_attn import counts, sharding, sizes
from entropy_attn.report import tables
from entropy_attn.train_step import trace_train_step

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier",
  "after-all", "partition-id", "iota", "async-update",
}  # fmt: skip
PASSES = {"parameters": 4, "moments": 4, "gradients": 3}  # of all of them: how often each must be read or written
HEAD = (
  "chip", "T", "tokens", "moved GiB", "in attention's loops", "least: state, gradients", "least: kept by layers",
)  # fmt: skip


# Of the loops of blockwise attention, whose blocks of logits stay in a CPU's caches.
_IN_ATTENTION = re.compile(r"blocks\.attend/[^\s\"]*while/body")


def moved(text: str) -> tuple[int, int]:
  """Bytes read and written by a compiled program, by its text: in all, and inside attention's loops."""
  computations = dict(_computations(text))
  entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
  found = _moved(computations, entry)
  return sum(found), found[1]


def _moved(computations, name) -> tuple[int, int]:
  lines = computations[name][1]
  total, in_attention = 0, 0
  for line in lines.values():
    if line.op == "while":
      condition, body = (re.search(rf"{part}=%?([\w.\-]+)", line.rest)[1] for part in ("condition", "body"))
      found = [_trips(computations, condition, line.rest) * n for n in _moved(computations, body)]
      total, in_attention = total + found[0], in_attention + found[1]
    elif line.op in ("call", "conditional"):
      called = re.findall(r"(?:to_apply|branch_computations|true_computation)=\{?%?([\w.\-]+)", line.rest)
      found = [sum(n) for n in zip(*(_moved(computations, other) for other in called), strict=True)] or [0, 0]
      total, in_attention = total + found[0], in_attention + found[1]
    elif line.op not in _FREE and not line.op.endswith("-start") and "AllocateBuffer" not in line.rest:
      size = 2 * line.size if line.op.endswith("-done") else _of_operation(computations, lines, line)
      if _IN_ATTENTION.search(line.rest):
        in_attention += size
      else:
        total += size
  return total, in_attention


def _trips(computations, condition: str, rest: str) -> int:
  """How often a loop runs: as its line tells, or else (a TPU's) by the bound in its condition."""
  if told := re.search(r'known_trip_count"?:\{"n":"(\d+)"', rest):
    return int(told[1])
  bounds = [part.rest for part in computations[condition][1].values() if part.op == "constant"]
  return max(int(bound[: bound.index(")")]) for bound in bounds)


def _of_operation(computations, lines, line) -> int:
  inner = re.search(r"calls=%?([\w.\-]+)", line.rest)
  operands = [lines[name].size for name in line.operands if name in lines]
  if line.op == "dynamic-slice":
    return 2 * line.size
  if line.op == "dynamic-update-slice":
    return 2 * operands[1]
  if line.op != "fusion" or inner is None:
    return line.size + sum(operands)
  parts = computations[inner[1]][1]
  users: dict[str, list] = {}
  for part in parts.values():
    for name in part.operands:
      users.setdefault(name, []).append(part)
  total = line.size
  for part in parts.values():
    if part.op == "parameter":
      read = [user.size if user.op == "dynamic-slice" else part.size for user in users.get(part.name, [])]
      total += min(sum(read), part.size)
    elif part.op == "dynamic-update-slice":  # in place: neither the rest is read nor written
      total += 2 * (parts[part.operands[1]].size - part.size)
  return max(total, 0)


@dataclasses.dataclass(frozen=True)
class _Line:
  """One operation: its name, its result's shape, what it does, and the rest of its text."""

  name: str
  shape: str
  op: str
  rest: str

  @property
  def size(self) -> int:
    """Bytes of the result."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", self.shape)
    return sum(_SIZES.get(dtype, 4) * math.prod(int(n) for n in axes.split(",") if n) for dtype, axes in arrays)

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, dict[str, _Line]]]]:
  """(name, (whether the program begins there, its operations by name))."""
  name, is_entry, lines = "", False, {}
  for line in text.splitlines():
    if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line):
      name, is_entry, lines = start[2], bool(start[1]), {}
    elif line.startswith("}"):
      yield name, (is_entry, lines)
    elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*)", line):
      lines[found[1]] = _Line(*found.groups())


def least(config) -> tuple[int, int]:
  """(bytes of parameters, moments and gradients; bytes of what the layers keep) that a step must move."""
  m = config.model
  state = 4 * sum(PASSES.values()) * counts.parameter_count(m)
  width = {"bfloat16": 2, "float32": 4}[m.dtype]
  # The stream before each norm in float32; what each norm gives, q, k, v and out, and the FFN before its activation.
  kept = 2 * 4 * m.d_model + width * (6 * m.d_model + sizes.ffn_width(m))
  return state, 2 * kept * m.num_layers * config.train.batch_size * m.context_length


def of_chip(chip: str, T: str) -> dict:
  """The figures of one program, which is compiled for it."""
  c = train_step.step_config("regulariser", T, on_cpu=chip == "cpu")
  if chip == "cpu":
    mesh = sharding.make_mesh(c, jax.devices("cpu")[:1])
    with jax.set_mesh(mesh):
      text = trace_train_step(c, mesh).lower().compile().as_text()
  else:
    from benchmarks import aot  # which needs its own environment

    c.model.attention = aot.PLATFORMS[chip].replace("cuda", "gpu")
    mesh = sharding.make_mesh(c, aot.devices(chip)[:1])
    with jax.set_mesh(mesh), warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="attention: ")
      text = aot.compile_traced(chip, trace_train_step(c, mesh)).text
  state, kept = least(c)
  tokens = c.train.batch_size * int(T)
  total, in_attention = moved(text)
  numbers = {"moved": total, "in_attention": in_attention, "state": state, "kept": kept}
  return {"chip": chip, "T": int(T), "tokens": tokens, **numbers}


def main(chips: list[str], lengths: list[str]) -> None:
  rows = []
  for chip in chips:
    for T in lengths:
      f = of_chip(chip, T)
      sizes_GiB = [f"{f[name] / 2**30:.1f}" for name in ("moved", "in_attention", "state", "kept")]
      rows.append([chip, f"{f['T']:,}", f"{f['tokens']:,}", *sizes_GiB])
  print(tables.markdown(HEAD, rows))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--chips", default="cpu", help="of cpu, h100, v5e")
  parser.add_argument("--lengths", default=",".join(train_step.CASES), help=f"T, of {', '.join(train_step.CASES)}")
  arguments = parser.parse_args()
  main(arguments.chips.split(","), arguments.lengths.split(","))
