"""From what both parties know of a model to the program of an inference: its steps, inputs and outputs.

Letters in array names: N new positions, P cached positions, M = P + N keys, D model width, H heads, K head width,
E entries of the causal part of N × M, V vocabulary, W one-hot width, B bits.
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping
import dataclasses
import math

import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.program import operations as f
from entropy_attn.private.program import products, reveal, softmax
from entropy_attn.private.program.attend import append_chain, append_softmax
from entropy_attn.private.program.checks import CountAtOnce
from entropy_attn.private.program.spec import LayerSpec, Spec
from entropy_attn.private.program.squares import gelu_tail
from entropy_attn.private.program.types import (
  CLIENT,
  LOWERINGS,
  NARROW,
  SECRET,
  SERVER,
  SHARED,
  WIDE,
  Operation,
  Product,
  Program,
  Step,
  Variable,
)
from entropy_attn.private.program.weights import SELECTED

_PLAINTEXT_BYTES = 8e9  # of a private matrix, encoded as the engine multiplies it


def build(
  spec: Spec,
  length: int,
  *,
  past: int = 0,
  every_position: bool = False,
  layers: int | None = None,
  prepared: bool = False,
) -> Program:
  """The program for `length` new positions after `past` cached ones.

  Its first output is what the spec reveals: 'logits' [1, V], 'token' [1], int32, or 'top' [2, K]: the largest logits,
  from the largest, and their tokens.

  Args:
    every_position: logits [N, V] of all new positions, as perplexity needs, whatever the spec reveals.
    layers: the first so many alone; None: all.
    prepared: whether squares and divisions are products, too, of which most can be done before (`ahead`); the engine by
      itself has cheaper ones.

  Raises:
    UserError: for more positions than the model has.
  """
  if past + length > spec.context_length:
    raise UserError(f"{past + length} tokens are more than the {spec.context_length} positions of this model")
  spec = dataclasses.replace(spec, reveal="logits") if every_position else spec
  last_only = spec.transforms.last_position and not every_position
  return Builder(spec, length, past, last_only, layers, prepared).program()


def set_up(threads: int, rings: Iterable[int]) -> Program:
  """What a session runs first, so that the engine makes its keys. It has no outputs.

  Args:
    threads: of the engine.
    rings: those that are computed in.
  """
  used = 2048 * threads  # a thread's share of element-wise work
  inputs, steps = {}, []
  for ring in rings:
    name = f"ones {ring}"
    inputs[name] = Variable((max(used, f.SET_UP),), SHARED)
    steps.append(Step(None, "setup", f.SetUp(used, products=ring == WIDE), (name,), (f"made {ring}",), ring))
  return Program(inputs, tuple(steps), (), ())


def client_inputs(spec: Spec, tokens_N: np.ndarray) -> dict[str, np.ndarray]:
  """What the client makes of its tokens: the inputs 'one_hot' [N, W or V], int32, and 'selected' [B, N, 1], float32.

  Raises:
    UserError: for ids out of range.
  """
  tokens_N = np.asarray(tokens_N)
  wrong = tokens_N[(tokens_N < 0) | (tokens_N >= spec.vocab_size)]
  if wrong.size:
    raise UserError(f"token {wrong[0]} is out of range: the model's vocabulary has {spec.vocab_size} entries")
  if spec.transforms.embedding == "one_hot":
    return {"one_hot": (tokens_N[:, None] == np.arange(spec.vocab_size)).astype(np.int32)}
  word, selected = np.divmod(tokens_N, SELECTED)
  one_hot = (word[:, None] == np.arange(math.ceil(spec.vocab_size / SELECTED))).astype(np.int32)
  bits = (selected >> np.arange(int(math.log2(SELECTED)))[::-1, None]) & 1
  return {"one_hot": one_hot, "selected": bits[..., None].astype(np.float32)}


def server_inputs(weights: Mapping[str, np.ndarray], length: int, past: int = 0) -> ChainMap[str, np.ndarray]:
  """The server's inputs: its weights, those that stand for positions cut to the `length` after `past`.

  The others stay where they are until they are asked for.
  """
  new = slice(past, past + length)
  sliced = {name: weights[name][:, new] for name in weights if name.endswith("inverse_temperature")}
  return ChainMap({"positions": weights["positions"][new], **sliced}, weights)


class Builder:
  """Collects a program's steps and inputs, layer by layer. Its arguments are those of `build`."""

  def __init__(self, spec: Spec, length: int, past: int, last_only: bool, layers: int | None, prepared: bool):
    self.spec, self.length, self.past, self.last_only, self.prepared = spec, length, past, last_only, prepared
    self.num_layers = len(spec.layers) if layers is None else layers
    self.inputs, self.steps, self.kept, self.products = {}, [], [], {}
    self.bad, self.unchecked = (), []  # what was counted, and row sums that wait for the one check

  def program(self) -> Program:
    """Builds the whole; called once."""
    self._embed()
    for l, layer in enumerate(self.spec.layers[: self.num_layers]):
      self._attention(l, layer)
      self._ffn(l, layer)
    self._head()
    revealed = self._revealed()
    return Program(self.inputs, tuple(self.steps), (revealed, *self.bad), tuple(self.kept), self.products)

  def add(self, layer, kind: str, operation: Operation, reads, writes, ring: int = WIDE):
    """Appends a step."""
    self.steps.append(Step(layer, kind, operation, tuple(reads), tuple(writes), ring))

  def weight(self, name: str, *shape: int) -> str:
    """Declares an input of the server's; returns its name."""
    self.inputs[name] = Variable(shape, SERVER)
    return name

  def matrix(self, name: str, *shape: int) -> str:
    """Declares a matrix of the server's, to multiply with; returns its name."""
    self.inputs[name] = Variable(shape, SERVER, whole=True)
    return name

  def bias(self, name: str, biases: tuple[str, ...], *shape: int, layer: int | None = None) -> list[str]:
    """Declares the bias of a linear that is among `biases`; returns its name, or none."""
    prefix = "" if layer is None else f"{layer}."
    return [self.weight(f"{prefix}{name}_bias", *shape)] if name in biases else []

  def weigh(self, layer, kind: str, x: str, matrix: str, rows: int, first: int = 0, end: int | None = None, **blocks):
    """Appends a product of `rows` rows of x with a matrix, or some of its columns; returns its name, uncut."""
    name = f"x {matrix}" if end is None else f"x {matrix} {first}"
    K, L = self.inputs[matrix].shape
    operation = products.Weigh(first, L if end is None else end, **blocks)
    return self.product(layer, kind, operation, (x, matrix), ((rows, K), (K, L)), name)

  def product(self, layer, kind: str, operation: Product, reads, shapes, name: str, ring: int = WIDE) -> str:
    """Appends a product of variables of some shapes; returns its name, uncut."""
    self.products[name] = shapes
    self.add(layer, kind, operation, reads, (name,), ring)
    return name

  def _embed(self):
    s, N, D = self.spec, self.length, self.spec.d_model
    positions = self.weight("positions", N, D)
    selected = s.transforms.embedding == "selected"
    parts = SELECTED if selected else 1
    W = math.ceil(s.vocab_size / parts)
    self.inputs["one_hot"] = Variable((N, W), CLIENT, "int32")
    table = self.matrix("table", W, parts * D)
    xw = self.weigh(None, "embedding", "one_hot", table, N, row_block=share(N, s.vocab_size * D))
    if selected:
      self.inputs["selected"] = Variable((int(math.log2(SELECTED)), N, 1), SHARED)
      self.add(None, "embedding", f.Select(), (xw, "selected", positions), ("x",))
    else:
      self.add(None, "embedding", f.Place(), (xw, positions), ("x",))

  def _attention(self, l: int, layer: LayerSpec):
    s, N, D, H = self.spec, self.length, self.spec.d_model, self.spec.num_heads
    M, K = self.past + N, D // H
    last = self.last_only and l == self.num_layers - 1
    if s.norm:
      self._norm(l, "ln_attn", N)
    k, v = f"{l}.k", f"{l}.v"
    new = ("k", "v" if l else "first") if self.past else (k, v)
    parts = self._queries_keys_values(l, "h" if s.norm else "x", last)
    bias = self.bias("qkv", layer.biases, 3 * D, layer=l)
    self.add(l, "projection", f.QueriesKeysValues(H, len(parts)), (*parts, *bias), ("q", *new))
    if s.value_residual and l:
      self.add(l, "projection", f.AddFirst(), (new[1], "first" if self.past else "0.v"), (new[1],))
    for whole, part in zip((k, v), new, strict=True):
      if self.past:
        self.inputs[f"past.{whole}"] = Variable((H, self.past, K), SECRET)
        self.add(l, "cache", f.Append(), (f"past.{whole}", part), (whole,))
    self.kept += [k, v]
    if layer.temperature:
      inverse = self.weight(f"{l}.inverse_temperature", H, N)
      self.add(l, "temperature", f.Cool(), ("q", inverse), ("q",))
    queries = 1 if last else N
    append_softmax(self, l, layer, k, v, queries, M)
    self.add(l, "projection", f.Merge(), ("a",), ("a",))
    xw = self.weigh(l, "projection", "a", self.matrix(f"{l}.o", D, D), queries)
    self.add(l, "projection", f.Attended(), ("x", xw, *self.bias("o", layer.biases, D, layer=l)), ("x",))

  def _queries_keys_values(self, l: int, source: str, last: bool) -> list[str]:
    """Appends the products that queries, keys and values are made of; returns their names."""
    N, D, joined = self.length, self.spec.d_model, self.spec.transforms.one_product
    matrix = self.matrix(f"{l}.qkv", D, 3 * D)
    if joined and not last:
      return [self.weigh(l, "projection", source, matrix, N)]
    one = source
    if last:
      one = "last"
      self.add(l, "projection", f.LastRow(), (source,), (one,))
    columns = [(one, 0, D), (source, D, 3 * D)] if joined else [(one, 0, D), (source, D, 2 * D), (source, 2 * D, 3 * D)]
    return [self.weigh(l, "projection", x, matrix, 1 if x == "last" else N, first, end) for x, first, end in columns]

  def lowered(self, l: int, kind: str, name: str):
    """Brings what a narrow ring computed from the upper half of the wide one, 2^29 too large for its point, down to it.

    By two products: the engine takes a constant as small as 2^−29 for something else (see LOWERINGS).
    """
    for bits in LOWERINGS:
      self.add(l, kind, softmax.Lower(bits), (name,), (name,))

  def checked(self, l: int, sums: str, keys: int, top: float):
    """Has row sums of a softmax checked, now or before the head."""
    t = self.spec.transforms
    if t.checked and t.one_check and t.fold:  # without fold the head has no check that they could wait for
      self.unchecked.append((sums, keys, top))
    elif t.checked:
      self._count(l, softmax.CountImpossible(keys, top), sums)

  def _count(self, l, operation: Operation, source: str):
    """Adds rows that fail a check to those that failed before, in secret: the client opens their number at the end.

    The head's check, the last one, takes along the row sums that wait for it.
    """
    if self.unchecked:
      sums, keys, tops = zip(*self.unchecked, strict=True)
      self.add(l, "check", CountAtOnce(keys, tops), (source, *sums), ("impossible",))
    else:
      self.add(l, "check", operation, (source, *self.bad), ("impossible",))
    self.bad = ("impossible",)

  def _ffn(self, l: int, layer: LayerSpec):
    s, D, F = self.spec, self.spec.d_model, self.spec.ffn_width
    if layer.ffn == "none":
      return
    N = 1 if self.last_only and l == self.num_layers - 1 else self.length
    linear = lambda name, source, target, *shape: self._linear(l, "ffn", name, layer.biases, source, target, N, *shape)
    if layer.ffn == "linear":
      linear("ffn", "x", "x", D, D)
      return
    if s.norm:
      self._norm(l, "ln_ffn", N)
    linear("ffn", "h" if s.norm else "x", "h", D, F if layer.ffn == "mlp" else D)
    if layer.ffn == "mlp":
      self._activation(l, layer.activation, (N, F))
      linear("ffn_out", "h", "h", F, D)
    factors = [self.weight(f"{l}.{name}") for name in layer.scaled]
    self.add(l, "ffn", f.AddResidual(layer.scaled), ("x", "h", *factors), ("x",))

  def _linear(self, l, kind: str, name: str, biases, source: str, target: str, rows: int, *shape: int, **blocks):
    """Appends target = source W + b, where it has a bias."""
    prefix = "" if l is None else f"{l}."
    xw = self.weigh(l, kind, source, self.matrix(f"{prefix}{name}", *shape), rows, **blocks)
    self.add(l, kind, f.Cut(), (xw, *self.bias(name, biases, shape[1], layer=l)), (target,))

  def _activation(self, l: int, activation: str, shape: tuple[int, int]):
    """h to act(h), in the narrow ring where it can be: into it and out of it as entries of a softmax go."""
    cheap = {"relu": f.Relu(), "gelu_squares": f.GeluBySquares(gelu_tail())}
    if activation not in cheap:
      if activation != "identity":
        self.add(l, "activation", f.GeluByEngine(approximate=activation == "gelu_tanh"), ("h",), ("h",))
    elif self.spec.transforms.narrow_activation:
      self.add(l, "activation", softmax.Narrowed(), ("h",), ("h",))
      if self.prepared and activation == "gelu_squares":
        self.add(l, "activation", f.GeluBegun(gelu_tail()), ("h",), ("h", "tail"), NARROW)
        append_chain(self, l, "activation", gelu_tail(), shape, "tail")
        self.add(l, "activation", f.GeluEnded(gelu_tail()), ("h", "tail"), ("h",), NARROW)
      else:
        self.add(l, "activation", cheap[activation], ("h",), ("h",), NARROW)
      self.lowered(l, "activation", "h")
    else:
      self.add(l, "activation", cheap[activation], ("h",), ("h",))

  def _norm(self, l, name: str, rows: int):
    """The normalised state "h" of x."""
    prefix = "" if l is None else f"{l}."
    gains = () if self.spec.transforms.fold else (f"{prefix}{name}_scale", f"{prefix}{name}_bias")
    for gain in gains:
      self.weight(gain, self.spec.d_model)
    if not self.prepared:
      self.add(l, "norm", f.LayerNorm(self.spec.epsilon), ("x", *gains), ("h",))
      return
    shape = (rows, self.spec.d_model)
    self.add(l, "norm", f.Centre(), ("x",), ("h",))
    squares = self.product(l, "norm", products.Square(), ("h",), (shape,), f"{prefix}{name} square")
    self.add(l, "norm", f.Cut(), (squares,), ("squares",))
    self.add(l, "norm", f.InverseDeviation(self.spec.epsilon), ("squares",), ("r",))
    scaled = self.product(l, "norm", products.ScaleRows(), ("h", "r"), (shape, shape[:1]), f"{prefix}{name}")
    self.add(l, "norm", f.Cut(), (scaled,), ("h",))
    if gains:
      self.add(l, "norm", f.Gain(), ("h", *gains), ("h",))

  def _head(self):
    s, D = self.spec, self.spec.d_model
    if self.last_only:
      self.add(None, "vocabulary", f.LastRow(), ("x",), ("x",))
    rows = 1 if self.last_only else self.length
    if s.head_basis:
      self._linear(None, "vocabulary", "basis", s.head_biases, "x", "x", rows, D, D)
    self._norm(None, "ln_f", rows)
    if s.transforms.checked and s.transforms.fold:
      self._count(None, f.CountUnnormalised(), "h")
    columns = share(s.vocab_size, D * rows)
    self._linear(None, "vocabulary", "head", s.head_biases, "h", "logits", rows, D, s.vocab_size, column_block=columns)

  def _revealed(self) -> str:
    """The name of what is made of the logits, to be revealed."""
    if self.spec.reveal == "argmax":
      narrow = self.spec.transforms.softmax_ring == "32"  # else its keys would be made for this alone
      self.add(None, "choice", reveal.LastLogits(narrow), ("logits",), ("logits",))
      self.add(None, "choice", reveal.Likeliest(), ("logits",), ("token",), NARROW if narrow else WIDE)
      return "token"
    if self.spec.reveal == "top_k":
      self.add(None, "choice", reveal.Top(self.spec.top_k), ("logits",), ("top",))
      return "top"
    return "logits"


def share(whole: int, products_each: int) -> int:
  """How much of a matrix product of a private matrix to do at a time, so that its plaintexts fit the memory."""
  return min(whole, max(1, int(_PLAINTEXT_BYTES / (products_each / 8192 * 196_608))))
