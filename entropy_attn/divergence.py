"""A loss or gradient that is not finite: told with the layer that broke first, and the heads that had collapsed."""

import numpy as np

from entropy_attn import entropy
from entropy_attn.errors import shorten


class NonFinite(Exception):
  """The first step whose loss or gradient was not finite.

  Attributes:
    step: its number.
    record: its metrics, as they are recorded.
  """

  def __init__(self, step: int, record: dict):
    super().__init__(step)
    self.step, self.record = step, record

  def outcome(self) -> dict:
    """What a summary says of a run that ended so: status, step, divergence, and its heads in place of an evaluation."""
    heads = ("entropy_LxH", "entropy_L", "max_entropy", "head_shares", "head_shares_observed_max", "nonfinite_rows_L")
    kept = {name: self.record[name] for name in heads}
    return {"loss": None, "perplexity": None, **kept} | {
      "status": "diverged",
      "step": self.step,
      "divergence": self._divergence(),
    }

  def _divergence(self) -> dict:
    layer, where = self._first()
    collapsed = entropy.collapsed_heads(self.record["entropy_LxH"], self.record["max_entropy"])
    heads = f"collapsed heads: {shorten(collapsed)}" if collapsed else "no head had collapsed"
    return {
      "text": f"step {self.step}: not finite first in {where}; {heads}",
      "step": self.step,
      "first_nonfinite_layer": layer,
      "where": where,
      "collapsed_heads": collapsed,
    }

  def _first(self) -> tuple[int | None, str]:
    """The layer (None: outside of them) and the place where values were first not finite."""
    rows_L, tokens_L = (np.asarray(self.record[name]) for name in ("nonfinite_rows_L", "nonfinite_tokens_L"))
    bad_forward = np.flatnonzero((rows_L > 0) | (tokens_L > 0))
    bad_gradient = np.flatnonzero(~np.isfinite(self.record["grad_norm_L"]))
    if bad_forward.size:
      layer = int(bad_forward[0])
      return layer, f"the attention of layer {layer}" if rows_L[layer] else f"the output of layer {layer}"
    if not np.isfinite(self.record["loss"]):
      return None, "the loss (every layer's output is finite)"
    if bad_gradient.size:
      layer = int(bad_gradient[-1])  # the backward pass comes from the top
      return layer, f"the gradient of layer {layer}"
    return None, "the gradient outside the layers"
