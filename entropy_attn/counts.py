"""Operations counted from a config alone: FLOPs, nonlinear operations, parameters, and the peak of known chips.

FLOPs and nonlinear operations are those of one forward pass over one sequence of T tokens, as the paper counts them.
"""

from collections.abc import Mapping
import dataclasses
import math

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import entropy, model, reparam, sizes

# Dense bf16 FLOP/s of one JAX device, by jax.Device.device_kind. Source: the vendors' data sheets, without sparsity;
# GeForce cards at their float32-accumulating rate, which is what matrix products use.
_PEAK_FLOPS = {
  "TPU v2": 22.5e12,  # of one core: JAX shows two a chip
  "TPU v3": 61.5e12,  # likewise
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A10G": 70e12,
  "NVIDIA A10": 125e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA B200": 2250e12,
  "NVIDIA GeForce RTX 3090": 71e12,
  "NVIDIA GeForce RTX 4090": 165.2e12,
  "NVIDIA H100 80GB HBM3": 989.4e12,
  "NVIDIA H100 NVL": 835.5e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989.4e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA RTX A6000": 154.8e12,
}


@dataclasses.dataclass(frozen=True)
class NonlinearOp:
  """One kind of nonlinear operation of a forward pass over one sequence."""

  op: str  # SM, LN, G or R as in the paper; ln_f for the final LayerNorm
  count: int
  rows: int
  columns: int
  published: bool = True  # False: part of the model, but left out of the paper's counts

  @property
  def notation(self) -> str:
    """The paper's notation, e.g. 'SM: 144 × R^{128×128}'."""
    return f"{self.op}: {self.count} × R^{{{self.rows}×{self.columns}}}"


def ffn_flops(model_config: Mapping) -> int:
  """FLOPs of all FFNs over one sequence of T tokens, as in Tables 3, 4, 7 and 8: two per multiply-add.

  An MLP d→F→d costs L·2·(2·T·d·F), a fused linear L·2·T·d²; L less those that were removed. F is 4d there.
  """
  m = model_config
  return _ffns(m) * m["context_length"] * 2 * _ffn_weights(m)


def attention_flops(model_config: Mapping) -> int:
  """FLOPs of all attention blocks over one sequence of T tokens, as in Tables 3, 4, 7 and 8.

  L·(8·T·d² + 3·T²·d): the four projections, QKᵀ in full and AV counted causally. The embedding and the vocabulary
  projection are left out, as in the paper.
  """
  m = model_config
  length, width = m["context_length"], m["d_model"]
  return m["num_layers"] * (8 * length * width**2 + 3 * length**2 * width)


def nonlinear_ops(model_config: Mapping) -> list[NonlinearOp]:
  """The nonlinear operations over one sequence, in the order and notation of Tables 3, 4, 7 and 8.

  The published LayerNorm counts hold the two of each layer, one where the FFN was removed. The final one, which every
  variant keeps, is the last entry here, with published=False.
  """
  m = model_config
  layers, length, width = m["num_layers"], m["context_length"], m["d_model"]
  ops = [NonlinearOp("SM", layers * m["num_heads"], length, length)]
  if m["norm"] == "layernorm":
    ops.append(NonlinearOp("LN", layers + _ffns(m), length, width))
  if m["activation"] != "identity" and _ffns(m):
    ops.append(NonlinearOp({"gelu": "G", "relu": "R"}[m["activation"]], _ffns(m), length, sizes.ffn_width(m)))
  ops.append(NonlinearOp("ln_f", 1, length, width, published=False))
  return ops


def parameter_count(model_config: Mapping) -> int:
  """Learned scalars of the model. The regulariser's thresholds are not the model's: see `threshold_count`."""
  m = model_config
  layers, width = m["num_layers"], m["d_model"]
  embeddings = (m["vocab_size"] * (1 if m["tie_embeddings"] else 2) + m["max_positions"]) * width
  norm = 2 * width if m["norm"] == "layernorm" else 0  # scale and bias
  attention = 4 * width**2 + norm + _temperatures(m) + _biases_and_gains(m, dict.fromkeys("qkvo", width))
  ffn = _ffn_weights(m) + norm + _biases_and_gains(m, _ffn_columns(m))
  ffn += 2 if m["residual_scaling"] else 0  # alpha and beta
  return embeddings + layers * attention + _ffns(m) * ffn + 2 * width  # the final LayerNorm's scale and bias


def threshold_count(config: ConfigDict) -> int:
  """Learned threshold weights theta of the entropy regulariser: L·H, 1 or 0 by regularizer.thresholds, 0 without it."""
  shape = entropy.THRESHOLDS[config.regularizer.thresholds](config.model.num_layers, config.model.num_heads)
  return math.prod(shape) if config.regularizer.weight > 0 and shape is not None else 0


def strength_count(config: ConfigDict) -> int:
  """Learned strengths of the regulariser's heads: L·H while training with them, else 0."""
  per_head = config.regularizer.weight > 0 and config.regularizer.strengths == "per_head"
  return config.model.num_layers * config.model.num_heads if per_head else 0


def training_flops_per_token(model_config: Mapping) -> float:
  """Matrix-product FLOPs that one token of training needs: what a model-FLOPs utilisation (MFU) divides by.

  Three times the forward pass (the backward pass has two products for each of its). The vocabulary projection is
  included, attention is counted causally ((T+1)/2 keys a query), and what rematerialisation repeats is not counted.
  """
  m = model_config
  width = m["d_model"]
  attention = 8 * width**2 + 2 * (m["context_length"] + 1) * width  # projections; QKᵀ and AV
  forward = m["num_layers"] * attention + _ffns(m) * 2 * _ffn_weights(m) + 2 * width * m["vocab_size"]
  return 3.0 * forward


def peak_flops(device_kind: str) -> float | None:
  """Dense bf16 FLOP/s of one device of a jax.Device.device_kind; None for a CPU or a chip not listed."""
  return _PEAK_FLOPS.get(device_kind)


def summary(config: ConfigDict) -> dict:
  """All counts of one config, ready for JSON. FLOPs and operations are those of one sequence."""
  m = config.model
  per_token = training_flops_per_token(m)
  tokens = config.train.steps * config.train.batch_size * m.context_length
  return {
    "architecture": config_lib.architecture_name(config),
    "num_layers": m.num_layers,
    "num_heads": m.num_heads,
    "d_model": m.d_model,
    "context_length": m.context_length,
    "ffn_flops": ffn_flops(m),
    "attention_flops": attention_flops(m),
    "nonlinear_ops": [dataclasses.asdict(op) | {"notation": op.notation} for op in nonlinear_ops(m)],
    "parameters": parameter_count(m),
    "threshold_parameters": threshold_count(config),
    "strength_parameters": strength_count(config),
    "effective_regularizer_weight": config_lib.effective_weight(config),
    "training_flops_per_token": per_token,
    "training_tokens": tokens,
    "training_flops": per_token * tokens,
  }


def _ffn_weights(m: Mapping) -> int:
  """Weights of one layer's FFN, biases aside."""
  return m["d_model"] * (m["d_model"] if m["ffn"] == "fused" else 2 * sizes.ffn_width(m))


def _ffns(m: Mapping) -> int:
  """Layers that have an FFN."""
  return m["num_layers"] - m["ffns_removed"]


def _ffn_columns(m: Mapping) -> dict[str, int]:
  """Output columns of each linear of an FFN, by its name in the model."""
  width = m["d_model"]
  return {"fused": width} if m["ffn"] == "fused" else {"up": sizes.ffn_width(m), "down": width}


def _biases_and_gains(m: Mapping, columns: Mapping[str, int]) -> int:
  """Learned beside the kernels of linears, whose output columns are given by name.

  A gain is one per output column with weight normalisation, one a linear with sigma-reparametrisation; spectral
  normalisation learns none.
  """
  biases = sum(size for linear, size in columns.items() if linear in model.BIASED[m["bias"]])
  targets = [size for linear, size in columns.items() if linear in reparam.TARGETS[m["reparam_targets"]]]
  return biases + {"weight": sum(targets), "sigma": len(targets)}.get(m["reparam"], 0)


def _temperatures(m: Mapping) -> int:
  shape = model.TEMPERATURES[m["temperature"]]
  return math.prod(shape(m["num_heads"], m["context_length"])) if shape else 0
