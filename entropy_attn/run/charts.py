"""What TensorBoard shows of a run's records: a few curves by name, and the charts that draw them together.

Every figure is in metrics.jsonl; here each becomes a curve, a mean over a layer's heads, a sum, or is left out.
"""

from collections.abc import Iterator, Mapping

_TAGS = {"perplexity": "eval/PPL", "tokens_per_second": "speed/tokens_per_second", "mfu": "speed/mfu"}
# Constants, what others say as well, and what the evaluation's image shows.
_LEFT_OUT = ("max_entropy", "penalty", "tokens", "sequences")
_SHARES = ("1_lowest_quarter", "2_second_quarter", "3_third_quarter", "4_top_quarter")
_NAMES = {"grad_norm": "gradient norm", "thresholds": "threshold"}  # of layers' quantities that need words


def scalars(kind: str, values: Mapping) -> dict[str, float]:
  """The curves' next values by their tags, of a record ready for JSON; what is None is left out.

  The first part of a tag is its group: eval, head_shares, heads, layers, speed, train. Of all tags, sorted, the first
  five are the columns that TensorBoard's table of hyperparameters shows unasked: eval/PPL comes before all.

  Args:
    kind: train or eval.
    values: of the record.
  """
  return {tag: value for tag, value in _curves(kind, values) if value is not None}


def layout(values: Mapping) -> dict[str, dict[str, list[str]]]:
  """{category: {chart: [patterns of tags]}} for the runs of one shape, from a train record ready for JSON."""
  layers = len(values["entropy_LxH"])
  quantities = sorted(
    {tag.split("/")[1] for tag in scalars("train", values) if tag.startswith("layers/")} - {"entropy"}
  )
  return {
    "training": {
      "loss": ["train/loss$", "eval/loss$"],
      "perplexity": ["eval/PPL$"],
      "gradient norm": ["train/grad_norm$"],
      "tokens per second": ["speed/tokens_per_second$"],
    },
    "entropy of the heads (nats)": {
      "mean of each layer": [r"layers/entropy/L\d+$"],
      "share of the heads in each quarter of Max": [r"head_shares/.*$"],
      **{f"layer {layer}": [rf"heads/L{layer:02d}H\d+$"] for layer in range(layers)},
    },
    "each layer": {_NAMES.get(name, name.replace("_", " ")): [rf"layers/{name}/L\d+$"] for name in quantities},
  }


def _curves(kind: str, values: Mapping) -> Iterator[tuple[str, float | None]]:
  for name, value in values.items():
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _LEFT_OUT:
      yield _TAGS.get(name, f"{kind}/{name}"), value
    if name.startswith(("nonfinite_", "negative_")) and isinstance(value, list):
      yield f"{kind}/{name.removesuffix('_L')}", _total(value)
    elif kind == "train" and isinstance(value, list):
      yield from _of_heads(name, value)


def _of_heads(name: str, value: list) -> Iterator[tuple[str, float | None]]:
  """The curves of a training step's quantity by heads, by layers, or by quarters."""
  if name == "head_shares":
    yield from ((f"head_shares/{quarter}", share) for quarter, share in zip(_SHARES, value, strict=True))
  elif name == "entropy_LxH":
    for layer, heads in enumerate(value):
      yield from ((f"heads/L{layer:02d}H{head:02d}", entropy) for head, entropy in enumerate(heads))
  elif name.endswith("_LxH"):
    quantity = name.removesuffix("_LxH")
    yield from ((f"layers/{quantity}/L{layer:02d}", _mean(heads)) for layer, heads in enumerate(value))
  elif name.endswith("_L"):
    yield from ((f"layers/{name.removesuffix('_L')}/L{layer:02d}", mean) for layer, mean in enumerate(value))


def _mean(values: list) -> float | None:
  return None if None in values else sum(values) / len(values)


def _total(values: list) -> float | None:
  return None if None in values else sum(values)
