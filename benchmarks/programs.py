"""What the text of a compiled program tells of its buffers and of what its devices send each other."""

import re


def shapes(text: str) -> set[tuple[int, ...]]:
  """The shapes of all arrays in the program, but not of other views of one (`bitcast`)."""
  lines = (line for line in text.splitlines() if " bitcast(" not in line)
  found = (shape for line in lines for shape in re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", line))
  return {tuple(map(int, shape.split(","))) for shape in found}


def square_buffers(text: str, T: int) -> list[tuple[int, ...]]:
  """Arrays with two axes of whole multiples of T: an attention matrix. T must divide no other size of the model."""
  return sorted(shape for shape in shapes(text) if sum(n % T == 0 for n in shape) > 1)


def most_tokens(text: str, V: int) -> int:
  """The most tokens that any array with an axis of the vocabulary holds; V must be no other size of the model."""
  counts = [0]
  for shape in shapes(text):
    if V in shape:
      size = 1
      for n in shape:
        size *= n
      counts.append(size // V)
  return max(counts)


def gathered_in_attention(text: str, T: int) -> list[str]:
  """Activations (an axis of whole multiples of T) that a device collects from others inside an attention block."""
  found = []
  for line in text.splitlines():
    sent = re.search(r"= \(?\w+\[([\d,]+)\].* (all-gather|all-to-all|collective-permute)(-start)?\(", line)
    if sent and "blocks.attend" in line and any(int(n) % T == 0 for n in sent[1].split(",")):
      found.append(f"{sent[2]} [{sent[1]}]")
  return found


_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "iota", "partition-id")


def moved_bytes(text: str) -> int:
  """What the operations of a program without loops read and write, each operand and result once.

  A kernel reads some operands more often than once; this tells what is moved around it, and what it is given.
  """
  entry = text[text.index("\nENTRY ") :]
  size, total = {}, 0
  for line in entry[: entry.index("\n}")].splitlines()[1:]:
    found = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", line)
    if not found:
      continue
    name, result, operation, rest = found.groups()
    sizes = [_size(kind, shape) for kind, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", result)]
    size[name] = sum(sizes)
    if operation in _FREE or operation.endswith("-done"):
      continue
    if operation.endswith("-start"):  # its result holds its operand, too
      total += 2 * sizes[1]
      continue
    operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
    total += size[name] + sum(size.get(operand, 0) for operand in operands)
  return total


def _size(kind: str, shape: str) -> int:
  count = _BYTES.get(kind, 0)
  for n in filter(None, shape.split(",")):
    count *= int(n)
  return count
