"""Operations counted from a config alone: FLOPs, nonlinear operations, parameters, and the peak of known chips.

    python -m entropy_attn.flops --config=configs/codeparrot_ereg.py [--json=FILE]

FLOPs and nonlinear operations are those of one forward pass over one sequence of T tokens, as the paper counts them.
"""

from collections.abc import Mapping
import dataclasses

from absl import flags
from ml_collections import ConfigDict

from entropy_attn import cli
from entropy_attn import config as config_lib

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

# The attention and FFN linears that each value of model.reparam_targets normalises.
_ATTENTION_TARGETS = {"qk": 2, "ffn": 0, "qk+ffn": 2, "qkv+ffn": 3, "qkvo+ffn": 4}


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

  An MLP d→4d→d costs L·2·(2·T·d·4d), a fused linear L·2·T·d².
  """
  m = model_config
  return m["num_layers"] * m["context_length"] * 2 * _ffn_weights(m)


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

  The published LayerNorm counts hold the two of each layer. The final one, which every variant keeps, is the last
  entry here, with published=False.
  """
  m = model_config
  layers, length, width = m["num_layers"], m["context_length"], m["d_model"]
  ops = [NonlinearOp("SM", layers * m["num_heads"], length, length)]
  if m["norm"] == "layernorm":
    ops.append(NonlinearOp("LN", 2 * layers, length, width))
  if m["activation"] != "identity":
    ops.append(NonlinearOp({"gelu": "G", "relu": "R"}[m["activation"]], layers, length, 4 * width))
  ops.append(NonlinearOp("ln_f", 1, length, width, published=False))
  return ops


def parameter_count(model_config: Mapping) -> int:
  """Learned scalars of the model. The regulariser's thresholds are not the model's: see `threshold_count`."""
  m = model_config
  layers, width = m["num_layers"], m["d_model"]
  embeddings = (m["vocab_size"] * (1 if m["tie_embeddings"] else 2) + m["max_positions"]) * width
  layer = 4 * width**2 + _ffn_weights(m) + _biases(m) + _gains(m) + _temperatures(m)
  layer += 4 * width if m["norm"] == "layernorm" else 0  # scale and bias, twice
  layer += 2 if m["residual_scaling"] else 0  # alpha and beta
  return embeddings + layers * layer + 2 * width  # the final LayerNorm's scale and bias


def threshold_count(config: ConfigDict) -> int:
  """Learned threshold weights theta(l,h) of the entropy regulariser: L·H while training with it, else 0."""
  return config.model.num_layers * config.model.num_heads if config.regularizer.weight > 0 else 0


def training_flops_per_token(model_config: Mapping) -> float:
  """Matrix-product FLOPs that one token of training needs: what a model-FLOPs utilisation (MFU) divides by.

  Three times the forward pass (the backward pass has two products for each of its). The vocabulary projection is
  included, attention is counted causally ((T+1)/2 keys a query), and what rematerialisation repeats is not counted.
  """
  m = model_config
  width = m["d_model"]
  attention = 8 * width**2 + 2 * (m["context_length"] + 1) * width  # projections; QKᵀ and AV
  forward = m["num_layers"] * (attention + 2 * _ffn_weights(m)) + 2 * width * m["vocab_size"]
  return 3.0 * forward


def peak_flops(device_kind: str) -> float | None:
  """Dense bf16 FLOP/s of one device of a jax.Device.device_kind; None for a CPU or a chip not listed."""
  return _PEAK_FLOPS.get(device_kind)


def summary(config: ConfigDict) -> dict:
  """All of this module's figures for one config, ready for JSON. FLOPs and operations are per sequence."""
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
    "training_flops_per_token": per_token,
    "training_tokens": tokens,
    "training_flops": per_token * tokens,
  }


def table(figures: Mapping) -> str:
  """The figures of `summary` as text, with the paper's units."""
  ops = figures["nonlinear_ops"]
  rows = [
    ("architecture", figures["architecture"]),
    ("size", "L={num_layers}, H={num_heads}, d={d_model}, T={context_length}".format(**figures)),
    ("FFN FLOPs", f"{figures['ffn_flops'] / 1e9:.1f}B a sequence"),
    ("attention FLOPs", f"{figures['attention_flops'] / 1e9:.1f}B a sequence"),
    ("nonlinear ops", "  ".join(op["notation"] for op in ops if op["published"])),
    ("left out by the paper", "  ".join(op["notation"] for op in ops if not op["published"])),
    ("parameters", f"{figures['parameters']:,} ({figures['parameters'] / 1e6:.1f}M)"),
    ("thresholds", f"{figures['threshold_parameters']:,} (training only)"),
    ("training FLOPs", f"{figures['training_flops_per_token'] / 1e6:.1f}M a token, vocabulary projection included"),
    ("whole training", f"{figures['training_tokens']:,} tokens, {figures['training_flops']:.3g} FLOPs"),
  ]
  return "\n".join(f"{name:<24}{value}" for name, value in rows)


def _ffn_weights(m: Mapping) -> int:
  """Weights of one layer's FFN, biases aside."""
  return m["d_model"] ** 2 * (1 if m["ffn"] == "fused" else 8)


def _ffn_columns(m: Mapping) -> int:
  """Output columns of one layer's FFN linears together."""
  return m["d_model"] * (1 if m["ffn"] == "fused" else 5)


def _biases(m: Mapping) -> int:
  return {"none": 0, "qk": 2 * m["d_model"], "all": 4 * m["d_model"] + _ffn_columns(m)}[m["bias"]]


def _gains(m: Mapping) -> int:
  """Gains of weight normalisation, one per output column of a target; spectral normalisation learns none."""
  if m["reparam"] != "weight":
    return 0
  targets = m["reparam_targets"]
  return _ATTENTION_TARGETS[targets] * m["d_model"] + (_ffn_columns(m) if "ffn" in targets else 0)


def _temperatures(m: Mapping) -> int:
  heads = m["num_heads"]
  return {"none": 0, "per_head": heads, "per_head_position": heads * m["context_length"]}[m["temperature"]]


if __name__ == "__main__":
  holder = cli.define_config()
  json_path = flags.DEFINE_string("json", None, "Also write the figures to this file.")

  def main():
    figures = summary(cli.load_config(holder))
    print(table(figures))
    cli.write_json(json_path.value, figures)

  cli.run(main)
