"""Whether a model is ready for private inference on a text: what its numbers reach, against what fixed point holds.

No engine is needed: the model's private form is computed in the clear (`private.program.ranges`).
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from entropy_attn.errors import UserError
from entropy_attn.private.program import prepare, ranges, spec
from entropy_attn.private.program.ranges import Range, Statistics
from entropy_attn.progress import timed
from entropy_attn.run.pretrained import Pretrained

SEQUENCES, LENGTH = prepare.CALIBRATION, 128  # as long as the prompts that the paper prices


def judge(model: Pretrained, tokens_SxN: np.ndarray) -> dict:
  """The verdict on a model, by some sequences of a text.

  Returns:
    ready: True, False, or None where it cannot be judged;
    text: the verdict in one line;
    sequences, length: what it rests on;
    tightest: the place that comes nearest to what its ring holds, but for what is bounded by construction, with place,
      largest, limit and spare_bits;
    outside: operations that do not fit with a margin of `ranges.MARGIN`, and LayerNorms of too small a variance;
    activation_ring: bits of the ring that activations are computed in;
    layers: of each layer, and of embedding and head (layer None): its `ranges.Statistics`, tightest and fits.
    Without a judgement, ready and text alone.
  """
  try:
    transforms = spec.transforms_for(model.config.model)
    parts = timed("the ranges of fixed point", lambda: prepare.fit(model, transforms, tokens_SxN))[0]
  except UserError as error:
    return {"ready": None, "text": f"cannot be judged: {error}"}
  private, exact, found = parts
  layers = [_layer(of, found) for of in ranges.statistics(exact.model, tokens_SxN)]
  tightest = _tightest(found)
  worst = {}  # of each operation of each layer
  for r in sorted(found, key=lambda r: r.spare_bits):
    worst.setdefault((r.layer, r.kind), r)
  outside = [_describe(r) for r in worst.values() if not r.fits]
  outside += [_small(of) for of in layers if of["variance"] and of["variance"][0] < ranges.LEAST_VARIANCE]
  return {
    "ready": not outside,
    "text": _verdict(tightest, outside, tokens_SxN.shape),
    "sequences": len(tokens_SxN),
    "length": tokens_SxN.shape[1],
    "activation_ring": 32 if private.spec.transforms.narrow_activation else 64,
    "tightest": _of(tightest),
    "outside": outside,
    "layers": layers,
  }


def _layer(of: Statistics, found: Sequence[Range]) -> dict:
  own = [r for r in found if r.layer == of.layer]
  enough = of.variance is None or of.variance[0] >= ranges.LEAST_VARIANCE
  return dataclasses.asdict(of) | {"tightest": _of(_tightest(own)), "fits": enough and all(r.fits for r in own)}


def _tightest(found: Sequence[Range]) -> Range:
  """The range that comes nearest to what its ring holds, of those that depend on the text."""
  return min((r for r in found if r.kind not in (*ranges.BOUNDED, "check")), key=lambda r: r.spare_bits)


def _of(found: Range) -> dict:
  names = ("place", "largest", "limit", "spare_bits")
  return {name: getattr(found, name) for name in names}


def _describe(found: Range) -> str:
  return f"{found.place} reaches {found.largest:.3g} of {found.limit:.3g}"


def _small(layer: Mapping) -> str:
  where = "the head" if layer["layer"] is None else f"layer {layer['layer']}"
  least = ranges.LEAST_VARIANCE
  return f"a LayerNorm of {where} divides by a variance of {layer['variance'][0]:.2g}, below {least:.2g}"


def _verdict(tightest: Range, outside: Sequence[str], shape: tuple[int, int]) -> str:
  if not outside:
    return (
      f"ready: on {shape[0]} sequences of {shape[1]} tokens every number could be {ranges.MARGIN:.0f} times as large; "
      f"the tightest, {tightest.place}, has {tightest.spare_bits:.1f} bits to spare"
    )
  more = f"; and {len(outside) - 1} more" if len(outside) > 1 else ""
  return f"not ready: {outside[0]}{more}"
