"""What a model's config implies of its arithmetic, for whoever computes, counts, prices or exports it.

`model_config` is the group `model` of a config. Letters: D model width, H heads, K = D / H head width.
"""

# What multiplies the products q·k of a layer, counted from 1, by model.score_scale. The softmax divides by the
# temperature besides. A layer may be a traced integer.
SCORE_SCALES = {
  "root_width": lambda K, layer: K**-0.5,
  "root_width_and_layer": lambda K, layer: K**-0.5 / layer,
  "layer": lambda K, layer: 1.0 / layer,
  "none": lambda K, layer: 1.0,
}


def ffn_width(model_config) -> int:
  """The hidden width of the FFN: model.ffn_width, 4 D where that is 0."""
  return model_config["ffn_width"] or 4 * model_config["d_model"]


def score_scale(model_config, index):
  """What multiplies the products q·k of the layer of an index from 0; an array where the index is one."""
  width = model_config["d_model"] // model_config["num_heads"]
  return SCORE_SCALES[model_config["score_scale"]](width, index + 1)
