"""The steps of one layer's private softmax, put together.

N queries, M keys, H heads, K head width, E entries of the causal part of N × M; b is the `build.Builder` that collects
the steps.
"""

from entropy_attn.private.program import causal, joined, products, softmax, uniform
from entropy_attn.private.program.operations import Cut
from entropy_attn.private.program.spec import LayerSpec, Transforms
from entropy_attn.private.program.squares import Squares
from entropy_attn.private.program.types import NARROW, WIDE
from entropy_attn.private.program.weights import halvings

_NARROW_KEYS = 2.5  # a head width: with more, dividing their probabilities costs more than dividing mixed values


def append_softmax(b, l: int, layer: LayerSpec, k: str, v: str, N: int, M: int) -> None:
  """Appends what makes of q, k and v the mixed values "a" of N queries and M keys.

  Heads that are taken for uniform have no scores.
  """
  means, H = b.spec.transforms.uniform_in(l), b.spec.num_heads
  if not means:
    _append_mixed(b, l, layer, k, v, (H, N, M))
    return
  rest = tuple(h for h in range(H) if h not in means)
  b.add(l, "values", uniform.CausalMeans(means, N), (v,), ("means",) if rest else ("a",))
  if rest:
    b.add(l, "scores", uniform.Rest(rest), ("q", k, v), ("q", "k", "v"))
    _append_mixed(b, l, layer, "k", "v", (len(rest), N, M))
    b.add(l, "values", uniform.Together(means + rest), ("means", "a"), ("a",))


def _append_mixed(b, l: int, layer: LayerSpec, k: str, v: str, sizes: tuple[int, int, int]) -> None:
  """Appends what makes of q, k and v of H heads the mixed values "a", by a softmax of the scores.

  Entries are cheapest to compare, square and multiply in the narrow ring, which holds no more than they need. A wide
  share becomes a narrow one by its lower half, without a message; what makes the entries leaves their point where
  the narrow ring has it. The way back is a narrow share in the upper half of a wide one, where its overflow falls
  off, and from there down to the wide point (`Builder.lowered`).
  """
  (H, N, M), t, chain, K = sizes, b.spec.transforms, layer.exponential, b.spec.d_model // b.spec.num_heads
  narrow = t.softmax_ring == "32"
  ring, division = NARROW if narrow else WIDE, _division(t, K, M)
  E = len(causal.entries(N, M))
  cut = halvings(chain) if chain else 0
  scores = products.Scores(t.triangle, _join(t), t.causal_blocks)
  s = b.product(l, "scores", scores, ("q", k), ((H, N, K), (H, M, K)), f"{l}.scores")
  b.add(l, "scores", softmax.CutScores(layer.score_scale, cut, narrow), (s,), ("s",))
  if not t.triangle:
    b.add(l, "maximum", softmax.MaskedBelowMaximum(), ("s",), ("s",))
  else:
    low = chain.low * chain.scale if t.clamp and chain else None  # its argument is scaled, too
    b.add(l, "maximum", softmax.BelowMaximum(N, M, low, t.maximum == "fours"), ("s",), ("s",), ring)
  if not chain:
    b.add(l, "exponential", softmax.ExpByEngine(), ("s",), ("e",))
  elif b.prepared and narrow:
    b.add(l, "exponential", softmax.Shift(chain.start), ("s",), ("e",), NARROW)
    append_chain(b, l, "exponential", chain, (H, E), "e")
  else:
    b.add(l, "exponential", softmax.ExpBySquares(chain), ("s",), ("e",), ring)
  top, sums = chain.top if chain else 1.0, f"{l}.sums"
  if division == "narrow":
    # Entries are divided before they leave the narrow ring, where a product costs half. Only the row sums go up and
    # come back: a reciprocal has no room in the narrow ring, and the check wants them before they are inverted.
    b.add(l, "reciprocal", softmax.RowSums(M), ("e",), (sums,), ring)
    b.lowered(l, "reciprocal", sums)
    b.checked(l, sums, M, top)
    b.add(l, "reciprocal", softmax.Inverse(narrow=True), (sums,), ("r",))
    _append_division(b, l, "e", products.Divide(), softmax.Probabilities(), ((H, E), (H, N)), ring)
  if narrow:
    b.lowered(l, "exponential", "e")
  if not t.triangle:
    b.add(l, "exponential", softmax.Forbid(), ("e",), ("e",))
  if division != "narrow" and (t.checked or division == "late"):
    b.add(l, "reciprocal", softmax.RowSums(M) if t.triangle else softmax.Sums(), ("e",), (sums,))
    b.checked(l, sums, M, top)
  if division == "late":
    b.add(l, "reciprocal", softmax.Inverse(narrow=False), (sums,), ("r",))
  if division == "early":
    if t.triangle:
      b.add(l, "exponential", softmax.Fill(M), ("e",), ("e",))
    b.add(l, "division", softmax.Divided(), ("e",), ("e",))
  weights = (H, E) if t.triangle and division != "early" else (H, N, M)
  a = b.product(l, "values", products.Mix(_join(t)), ("e", v), (weights, (H, M, K)), f"{l}.values")
  b.add(l, "values", Cut(), (a,), ("a",))
  if division == "late":  # N × K mixed values instead of N × M entries
    _append_division(b, l, "a", products.ScaleRows(), softmax.DivideRows(), ((H, N, K), (H, N)), WIDE)


def divisions(t: Transforms) -> tuple[str, ...]:
  """Where rows may be divided by their sums: one of these for few keys, the last for many."""
  if t.division != "auto":
    return (t.division,)
  return ("narrow", "late") if t.softmax_ring == "32" else ("late",)


def _division(t: Transforms, K: int, M: int) -> str:
  return divisions(t)[0 if M <= _NARROW_KEYS * K else -1]


def _join(t: Transforms) -> str:
  if not t.join_heads:
    return joined.NEVER
  return joined.CHEAPEST if t.join_queries else joined.ONE_QUERY


def append_chain(b, l: int, kind: str, chain: Squares, shape: tuple[int, ...], name: str) -> None:
  """Appends a chain of squares of a variable in the narrow ring, square by square."""
  for i, offset in enumerate(chain.offsets):
    square = b.product(l, kind, products.Square(), (name,), (shape,), f"{l}.{kind} {i}", NARROW)
    b.add(l, kind, softmax.CutSquare(offset), (square,), (name,), NARROW)


def _append_division(b, l: int, name: str, product, at_once, shapes, ring: int) -> None:
  """Appends rows of a variable times their inverse sums "r": as a product that can be prepared, or at once."""
  if not b.prepared:
    b.add(l, "division", at_once, (name, "r"), (name,), ring)
    return
  divided = b.product(l, "division", product, (name, "r"), shapes, f"{l}.division", ring)
  b.add(l, "division", Cut(ring), (divided,), (name,), ring)
