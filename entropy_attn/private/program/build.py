"""From what both parties know of a model to the program of an inference: its steps, inputs and outputs.

Letters in array names: N new positions, P cached positions, M = P + N keys, D model width, H heads, K head width,
E entries of the causal part of N × M, V vocabulary, W one-hot width, B bits.
"""

from collections.abc import Iterable, Mapping
import math

import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.program import joined, softmax, uniform
from entropy_attn.private.program import operations as f
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
  Program,
  Step,
  Variable,
)
from entropy_attn.private.program.weights import SELECTED, halvings

_NARROW_KEYS = 2.5  # a head width: with more, dividing their probabilities costs more than dividing mixed values
_PLAINTEXT_BYTES = 8e9  # of a private matrix, encoded as the engine multiplies it


def build(
  spec: Spec, length: int, *, past: int = 0, every_position: bool = False, layers: int | None = None
) -> Program:
  """The program for `length` new positions after `past` cached ones; its outputs are logits [1, V].

  Args:
    every_position: logits [N, V] of all new positions, as perplexity needs, and not of the last alone.
    layers: the first so many alone; None: all.

  Raises:
    UserError: for more positions than the model has.
  """
  if past + length > spec.context_length:
    raise UserError(f"{past + length} tokens are more than the {spec.context_length} positions of this model")
  return _Builder(spec, length, past, spec.transforms.last_position and not every_position, layers).program()


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


def server_inputs(weights: Mapping[str, np.ndarray], length: int, past: int = 0) -> dict[str, np.ndarray]:
  """The server's inputs: its weights, those that stand for positions cut to the `length` after `past`."""
  new = slice(past, past + length)
  sliced = {name: array[:, new] for name, array in weights.items() if name.endswith("inverse_temperature")}
  return {**weights, "positions": weights["positions"][new], **sliced}


class _Builder:
  """Collects a program's steps and inputs, layer by layer."""

  def __init__(self, spec: Spec, length: int, past: int, last_only: bool, layers: int | None):
    self.spec, self.length, self.past, self.last_only = spec, length, past, last_only
    self.num_layers = len(spec.layers) if layers is None else layers
    self.inputs, self.steps, self.kept = {}, [], []
    self.bad, self.unchecked = (), []  # what was counted, and row sums that wait for the one check

  def program(self) -> Program:
    """Builds the whole; called once."""
    self._embed()
    for l, layer in enumerate(self.spec.layers[: self.num_layers]):
      self._attention(l, layer)
      self._ffn(l, layer)
    self._head()
    return Program(self.inputs, tuple(self.steps), ("logits", *self.bad), tuple(self.kept))

  def add(self, layer, kind: str, operation: Operation, reads, writes, ring: int = WIDE):
    """Appends a step."""
    self.steps.append(Step(layer, kind, operation, tuple(reads), tuple(writes), ring))

  def weight(self, name: str, *shape: int) -> str:
    """Declares an input of the server's; returns its name."""
    self.inputs[name] = Variable(shape, SERVER)
    return name

  def bias(self, name: str, biases: tuple[str, ...], *shape: int, layer: int | None = None) -> list[str]:
    """Declares the bias of a linear that is among `biases`; returns its name, or none."""
    prefix = "" if layer is None else f"{layer}."
    return [self.weight(f"{prefix}{name}_bias", *shape)] if name in biases else []

  def _embed(self):
    s, N, D = self.spec, self.length, self.spec.d_model
    positions = self.weight("positions", N, D)
    rows = _share(N, s.vocab_size * D)
    if s.transforms.embedding != "selected":
      table = self.weight("table", s.vocab_size, D)
      self.inputs["one_hot"] = Variable((N, s.vocab_size), CLIENT, "int32")
      self.add(None, "embedding", f.EmbedWhole(rows), ("one_hot", table, positions), ("x",))
      return
    W, bits = math.ceil(s.vocab_size / SELECTED), int(math.log2(SELECTED))
    self.inputs["one_hot"] = Variable((N, W), CLIENT, "int32")
    self.inputs["selected"] = Variable((bits, N, 1), SHARED)
    reads = ("one_hot", "selected", self.weight("table", W, SELECTED * D), positions)
    self.add(None, "embedding", f.Embed(rows), reads, ("x",))

  def _attention(self, l: int, layer: LayerSpec):
    s, t, N, D, H = self.spec, self.spec.transforms, self.length, self.spec.d_model, self.spec.num_heads
    M, K = self.past + N, D // H
    last = self.last_only and l == self.num_layers - 1
    if s.norm:
      self._norm(l, "ln_attn", "x", "h")
    source = "h" if s.norm else "x"
    qkv = [self.weight(f"{l}.qkv", D, 3 * D), *self.bias("qkv", layer.biases, 3 * D, layer=l)]
    k, v = f"{l}.k", f"{l}.v"
    new = ("k", "v") if self.past else (k, v)
    self.add(l, "projection", f.QueriesKeysValues(H, last, t.one_product), (source, *qkv), ("q", *new))
    for whole, part in zip((k, v), new, strict=True):
      if self.past:
        self.inputs[f"past.{whole}"] = Variable((H, self.past, K), SECRET)
        self.add(l, "cache", f.Append(), (f"past.{whole}", part), (whole,))
    self.kept += [k, v]
    if layer.temperature:
      inverse = self.weight(f"{l}.inverse_temperature", H, N)
      self.add(l, "temperature", f.Cool(), ("q", inverse), ("q",))
    self._softmax(l, layer, k, v, 1 if last else N, M)
    o = [self.weight(f"{l}.o", D, D), *self.bias("o", layer.biases, D, layer=l)]
    self.add(l, "projection", f.Attended(), ("x", "a", *o), ("x",))

  def _softmax(self, l: int, layer: LayerSpec, k: str, v: str, N: int, M: int):
    """q, k and v to the mixed values "a" of N queries and M keys; heads taken for uniform have no scores."""
    means = self.spec.transforms.uniform_in(l)
    if not means:
      self._mixed(l, layer, k, v, N, M)
      return
    rest = tuple(h for h in range(self.spec.num_heads) if h not in means)
    self.add(l, "values", uniform.CausalMeans(means, N), (v,), ("means",) if rest else ("a",))
    if rest:
      self.add(l, "scores", uniform.Rest(rest), ("q", k, v), ("q", "k", "v"))
      self._mixed(l, layer, "k", "v", N, M)
      self.add(l, "values", uniform.Together(means + rest), ("means", "a"), ("a",))

  def _mixed(self, l: int, layer: LayerSpec, k: str, v: str, N: int, M: int):
    """q, k and v to the mixed values "a" by a softmax of the scores.

    Entries are cheapest to compare, square and multiply in the narrow ring, which holds no more than they need. A wide
    share becomes a narrow one by its lower half, without a message; what makes the entries leaves their point where
    the narrow ring has it. The way back is a narrow share in the upper half of a wide one, where its overflow falls
    off, and from there down to the wide point (`_lowered`).
    """
    t, K, chain = self.spec.transforms, self.spec.d_model // self.spec.num_heads, layer.exponential
    narrow = t.softmax_ring == "32"
    division = t.division
    if division == "auto":
      division = "narrow" if narrow and M <= _NARROW_KEYS * K else "late"
    ring = NARROW if narrow else WIDE
    scale = 1.0 if t.fold else K**-0.5
    cut = halvings(chain) if chain else 0
    join = joined.CHEAPEST if t.join_queries else joined.ONE_QUERY
    join = join if t.join_heads else joined.NEVER
    scores = softmax.Scores(t.triangle, join, t.causal_blocks, scale, cut, narrow)
    self.add(l, "scores", scores, ("q", k), ("s",))
    if not t.triangle:
      self.add(l, "maximum", softmax.MaskedBelowMaximum(), ("s",), ("s",))
    else:
      low = chain.low * chain.scale if t.clamp and chain else None  # its argument is scaled, too
      self.add(l, "maximum", softmax.BelowMaximum(N, M, low, t.maximum == "fours"), ("s",), ("s",), ring)
    if chain:
      self.add(l, "exponential", softmax.ExpBySquares(chain), ("s",), ("e",), ring)
    else:
      self.add(l, "exponential", softmax.ExpByEngine(), ("s",), ("e",))
    top, sums = chain.top if chain else 1.0, f"{l}.sums"
    if division == "narrow":
      # Entries are divided before they leave the narrow ring, where a product costs half. Only the row sums go up and
      # come back: a reciprocal has no room in the narrow ring, and the check wants them before they are inverted.
      self.add(l, "reciprocal", softmax.RowSums(N, M), ("e",), (sums,), ring)
      self._lowered(l, "reciprocal", sums)
      self._checked(l, sums, M, top)
      self.add(l, "reciprocal", softmax.Inverse(narrow=True), (sums,), ("r",))
      self.add(l, "division", softmax.Probabilities(N, M), ("e", "r"), ("e",), ring)
    if narrow:
      self._lowered(l, "exponential", "e")
    # Only now the zeros: they are free to add, but would have been compared, squared and lowered with the rest.
    if t.triangle:
      self.add(l, "exponential", softmax.Fill(N, M), ("e",), ("e",))
    else:
      self.add(l, "exponential", softmax.Forbid(), ("e",), ("e",))
    if division != "narrow" and (t.checked or division == "late"):
      self.add(l, "reciprocal", softmax.Sums(), ("e",), (sums,))
      self._checked(l, sums, M, top)
    if division == "late":
      self.add(l, "reciprocal", softmax.Inverse(narrow=False), (sums,), ("r",))
    if division == "early":
      self.add(l, "division", softmax.Divided(), ("e",), ("e",))
    self.add(l, "values", softmax.Mix(join), ("e", v), ("a",))
    if division == "late":  # N × K mixed values instead of N × M entries
      self.add(l, "division", softmax.DivideRows(), ("a", "r"), ("a",))

  def _lowered(self, l: int, kind: str, name: str):
    """Brings what a narrow ring computed from the upper half of the wide one, 2^29 too large for its point, down to it.

    By two products: the engine takes a constant as small as 2^−29 for something else (see LOWERINGS).
    """
    for bits in LOWERINGS:
      self.add(l, kind, softmax.Lower(bits), (name,), (name,))

  def _checked(self, l: int, sums: str, keys: int, top: float):
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
    weights = lambda name, *shape: [
      self.weight(f"{l}.{name}", *shape), *self.bias(name, layer.biases, shape[-1], layer=l)
    ]  # fmt: skip
    if layer.ffn == "none":
      return
    if layer.ffn == "linear":
      self.add(l, "ffn", f.Linear(), ("x", *weights("ffn", D, D)), ("x",))
      return
    if s.norm:
      self._norm(l, "ln_ffn", "x", "h")
    first = weights("ffn", D, F if layer.ffn == "mlp" else D)
    self.add(l, "ffn", f.Linear(), ("h" if s.norm else "x", *first), ("h",))
    if layer.ffn == "mlp":
      self._activation(l, layer.activation)
      self.add(l, "ffn", f.Linear(), ("h", *weights("ffn_out", F, D)), ("h",))
    factors = [self.weight(f"{l}.{name}") for name in layer.scaled]
    self.add(l, "ffn", f.AddResidual(layer.scaled), ("x", "h", *factors), ("x",))

  def _activation(self, l: int, activation: str):
    """h to act(h), in the narrow ring where it can be: into it and out of it as entries of a softmax go."""
    cheap = {"relu": f.Relu(), "gelu_squares": f.GeluBySquares(gelu_tail())}
    if activation not in cheap:
      if activation != "identity":
        self.add(l, "activation", f.GeluByEngine(approximate=activation == "gelu_tanh"), ("h",), ("h",))
    elif self.spec.transforms.narrow_activation:
      self.add(l, "activation", softmax.Narrowed(), ("h",), ("h",))
      self.add(l, "activation", cheap[activation], ("h",), ("h",), NARROW)
      self._lowered(l, "activation", "h")
    else:
      self.add(l, "activation", cheap[activation], ("h",), ("h",))

  def _norm(self, l, name: str, source: str, target: str, last: bool = False):
    prefix = "" if l is None else f"{l}."
    gains = () if self.spec.transforms.fold else (f"{prefix}{name}_scale", f"{prefix}{name}_bias")
    for gain in gains:
      self.weight(gain, self.spec.d_model)
    self.add(l, "norm", f.LayerNorm(last), (source, *gains), (target,))

  def _head(self):
    s, D = self.spec, self.spec.d_model
    if self.last_only:
      self.add(None, "vocabulary", f.LastRow(), ("x",), ("x",))
    if s.head_basis:
      basis = [self.weight("basis", D, D), *self.bias("basis", s.head_biases, D)]
      self.add(None, "vocabulary", f.Linear(), ("x", *basis), ("x",))
    self._norm(None, "ln_f", "x", "h")
    if s.transforms.checked and s.transforms.fold:
      self._count(None, f.CountUnnormalised(), "h")
    head = [self.weight("head", D, s.vocab_size), *self.bias("head", s.head_biases, s.vocab_size)]
    columns = _share(s.vocab_size, D * (1 if self.last_only else self.length))
    self.add(None, "vocabulary", f.Linear(columns), ("h", *head), ("logits",))


def _share(whole: int, products_each: int) -> int:
  """How much of a matrix product of a private matrix to do at a time, so that its plaintexts fit the memory."""
  return min(whole, max(1, int(_PLAINTEXT_BYTES / (products_each / 8192 * 196_608))))
