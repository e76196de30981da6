"""A model's variables folded into the weights of its private program: float64 NumPy, the server's own work.

The residual stream x is computed in a basis z, x = z N + n. An FFN without norm or activation is x ← x M + c, so it
vanishes into N ← N M, n ← n M + c; its neighbours' weights become N W_QKV and W_O N⁻¹, and N is applied once, to what
the final LayerNorm takes. With value residuals all layers' values are halved, so that v_1 / 2 is there to be added to
them as it is, without a message; the first layer's W_O is doubled.

Letters in array names: D model width, H heads, T positions, V vocabulary, W and S its two parts.
"""

from collections.abc import Mapping
import dataclasses
import math

import jax
import numpy as np

from entropy_attn import curriculum, reparam, sizes
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program.spec import LayerSpec, Spec, Transforms
from entropy_attn.private.program.squares import Squares

SELECTED = 4  # S: tokens w S + s have a one-hot row of w, and log2 S bits of s


@dataclasses.dataclass(frozen=True)
class Model:
  """A model in its private form.

  Attributes:
    spec: what both parties know.
    weights: what the server alone holds, float32, by the names of a program's inputs.
    kept_ffns: layers that have an FFN still.
    condition_numbers: of the basis after each layer.
  """

  spec: Spec
  weights: Mapping[str, np.ndarray]
  kept_ffns: tuple[int, ...]
  condition_numbers: tuple[float, ...]


def fold(variables: Mapping, model_config, transforms: Transforms, exponentials: tuple[Squares, ...]) -> Model:
  """A model's private form: its variables folded into the weights of its programs.

  Args:
    variables: of `model.GPT(model_config)`.
    model_config: the config's model group.
    transforms: what to do.
    exponentials: of each layer's softmax; empty with transforms.exponential = engine.

  Raises:
    UserError: where transforms contradict the architecture or each other, or a curriculum has not ended.
  """
  plain, c = curriculum.fold(variables, model_config)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), plain["params"])
  blocks = _blocks(p, c)
  t = transforms
  spec = spec_lib.of_config(c, t, exponentials)
  linear = c.norm == "none" and c.activation == "identity" and t.fold
  basis = _Basis(c.d_model, biased=c.bias == "all")
  weights, layers, conditions = {"positions": p["position_embedding"]} | _embedding(p, c, t), [], []
  for l, layer in enumerate(spec.layers):
    block = blocks[l]
    factor = sizes.score_scale(c, l) if t.fold else 1.0
    of_layer = _attention(block, c, t, layer.exponential, basis, absorbs=linear, factor=factor)
    if l >= c.num_layers - c.ffns_removed:
      ffn = {}
    elif linear:
      ffn = basis.absorb(*_linear_ffn(block, c), bound=t.condition_bound if t.eliminate_ffns else 0.0)
      layer = dataclasses.replace(layer, ffn="linear" if ffn else "none")
    else:
      ffn = _ffn(block, c, t, layer)
    of_layer |= ffn
    biases = tuple(name.removesuffix("_bias") for name in of_layer if name.endswith("_bias") and "ln_" not in name)
    layers.append(dataclasses.replace(layer, biases=biases))
    weights |= {f"{l}.{name}": array for name, array in of_layer.items()}
    conditions.append(basis.condition)
  head = _head(p, c, t, basis)
  spec = dataclasses.replace(
    spec,
    layers=tuple(layers),
    head_basis="basis" in head,
    head_biases=tuple(name for name in ("basis", "head") if f"{name}_bias" in head),
  )
  weights |= head
  weights = {name: np.asarray(array, np.float32, order="C") for name, array in weights.items()}
  kept = tuple(l for l, layer in enumerate(layers) if layer.ffn != "none")
  return Model(spec, weights, kept, tuple(conditions))


def halvings(exponential: Squares) -> int:
  """h in scale = g 2^−h with 1 ≤ g < 2: g goes into the weights, the rest is cut off the scores."""
  return -math.floor(math.log2(exponential.scale))


class _Basis:
  """The basis z of the residual stream, x = z N + n.

  Args:
    width: D.
    biased: whether the model's linears have biases, so that n may not vanish.
  """

  def __init__(self, width: int, biased: bool):
    self.matrix, self.offset = np.eye(width), np.zeros(width)
    self.biased = biased

  @property
  def condition(self) -> float:
    """The condition number of N."""
    return float(np.linalg.cond(self.matrix))

  @property
  def trivial(self) -> bool:
    """Whether N is the identity."""
    return np.array_equal(self.matrix, np.eye(len(self.matrix)))

  def absorb(self, M: np.ndarray, c: np.ndarray, bound: float) -> dict:
    """x ← x M + c: no weights, or those of the product that is left where N M is conditioned worse than `bound`."""
    matrix, offset = self.matrix @ M, self.offset @ M + c
    if np.linalg.cond(matrix) <= bound:
      self.matrix, self.offset = matrix, offset
      return {}
    self.matrix, self.offset = np.eye(len(M)), np.zeros(len(M))
    return {"ffn": matrix} | ({"ffn_bias": offset} if self.biased else {})


def _blocks(p, c) -> list[dict]:
  """The parameters of each layer, with value residuals as the program adds them."""
  stacks = reparam.stacks_of(p)
  blocks = [jax.tree.map(lambda x, i=i: x[i], stack) for stack in stacks for i in range(len(stack["q"]["kernel"]))]
  if c.value_residual == "fixed":
    blocks = [block | {"v": {name: 0.5 * x for name, x in block["v"].items()}} for block in blocks]
    blocks[0] |= {"o": blocks[0]["o"] | {"kernel": 2 * blocks[0]["o"]["kernel"]}}
  return blocks


def _embedding(p, c, t: Transforms) -> dict:
  table_VxD = p["token_embedding"] * (c.d_model**0.5 if c.scale_embeddings else 1.0)
  if t.embedding != "selected":
    return {"table": table_VxD}
  W = math.ceil(c.vocab_size / SELECTED)
  padded = np.zeros((W * SELECTED, c.d_model))
  padded[: c.vocab_size] = table_VxD
  return {"table": padded.reshape(W, SELECTED * c.d_model)}


def _attention(block, c, t: Transforms, exponential, basis: _Basis, *, absorbs: bool, factor: float) -> dict:
  """qkv [D, 3D], o [D, D], their biases, and what is left of a temperature.

  Args:
    absorbs: whether the basis takes an offset of x.
    factor: of the scores, that goes into the weights.
  """
  H, D = c.num_heads, c.d_model
  kernels = [block[name]["kernel"] for name in "qkv"]
  biases = [block[name].get("bias", np.zeros(D)) for name in "qkv"]
  output, output_bias = block["o"]["kernel"], block["o"].get("bias")
  weights, biased = {}, c.bias != "none"
  temperature = block.get("temperature")
  if temperature is not None and c.temperature_form == "log":
    temperature = np.exp(temperature)
  if c.norm == "layernorm":
    scale, shift = block["ln_attn"]["scale"], block["ln_attn"]["bias"]
    if t.fold:
      biases = [bias + shift @ kernel for bias, kernel in zip(biases, kernels, strict=True)]
      kernels = [scale[:, None] * kernel for kernel in kernels]
      biased = True
    else:
      weights |= {"ln_attn_scale": scale, "ln_attn_bias": shift}
  if t.fold:
    factor_H = np.full(H, factor)
    if exponential is not None:
      factor_H *= exponential.scale * 2.0 ** halvings(exponential)
    if c.temperature == "per_head":
      factor_H, temperature = factor_H / temperature, None
    for kind, factor_D in enumerate(_balanced(np.repeat(factor_H, D // H), kernels, H)):
      kernels[kind], biases[kind] = kernels[kind] * factor_D, biases[kind] * factor_D
    biases = [bias + basis.offset @ kernel for bias, kernel in zip(biases, kernels, strict=True)]
    kernels = [basis.matrix @ kernel for kernel in kernels]
    output = np.linalg.solve(basis.matrix.T, output.T).T  # W_O N⁻¹
    if output_bias is not None and absorbs:
      basis.offset, output_bias = basis.offset + output_bias, None
  weights |= {"qkv": np.concatenate(kernels, axis=1), "o": output}
  if biased or (basis.biased and t.fold):
    weights["qkv_bias"] = np.concatenate(biases)
  if output_bias is not None:
    weights["o_bias"] = output_bias
  if temperature is not None:
    temperature = temperature[:, None] if temperature.ndim == 1 else temperature
    weights["inverse_temperature"] = 1 / np.broadcast_to(temperature, (H, c.context_length))
  return weights


def _balanced(factor_D, kernels, heads: int) -> tuple[np.ndarray, np.ndarray]:
  """What queries and keys are multiplied by, so that the scores are by `factor_D` and both have a like size.

  A weight much smaller than 2^−18 would be rounded away, and fixed point has that step for both.
  """
  size_q, size_k = (np.abs(k).reshape(len(k), heads, -1).max(axis=(0, 2)) for k in kernels[:2])
  ratio_D = np.repeat(np.sqrt(size_k / np.maximum(size_q, 1e-12)), len(factor_D) // heads)
  ratio_D = np.where((ratio_D > 0) & np.isfinite(ratio_D), ratio_D, 1.0)
  root_D = np.sqrt(np.abs(factor_D))
  return np.sign(factor_D) * root_D * ratio_D, root_D / ratio_D


def _linear_ffn(block, c) -> tuple[np.ndarray, np.ndarray]:
  """x ← x M + c of an FFN without norm or activation, with its residual connection."""
  alpha, beta = (block["alpha"], block["beta"]) if c.residual_scaling else (1.0, 1.0)
  W, b = _fused_ffn(block, c)
  return beta * np.eye(c.d_model) + W / alpha, b / alpha


def _fused_ffn(block, c) -> tuple[np.ndarray, np.ndarray]:
  """The FFN x W + b of a layer without activation."""
  zeros = np.zeros(c.d_model)
  if c.ffn == "fused":
    return block["fused"]["kernel"], block["fused"].get("bias", zeros)
  up, down = block["up"], block["down"]
  hidden = up.get("bias", np.zeros(sizes.ffn_width(c)))
  return up["kernel"] @ down["kernel"], hidden @ down["kernel"] + down.get("bias", zeros)


def _ffn(block, c, t: Transforms, layer: LayerSpec) -> dict:
  """The weights of an FFN that stays one."""
  weights, biased = {}, c.bias == "all"
  if layer.ffn == "residual":
    kernels, biases = [_fused_ffn(block, c)[0]], [_fused_ffn(block, c)[1]]
  else:
    kernels = [block[name]["kernel"] for name in ("up", "down")]
    biases = [block[name].get("bias", np.zeros(kernel.shape[1])) for name, kernel in zip(("up", "down"), kernels)]  # noqa: B905
  biased = [biased] * len(kernels)
  if c.norm == "layernorm":
    scale, shift = block["ln_ffn"]["scale"], block["ln_ffn"]["bias"]
    if t.fold:
      kernels[0], biases[0], biased[0] = scale[:, None] * kernels[0], biases[0] + shift @ kernels[0], True
    else:
      weights |= {"ln_ffn_scale": scale, "ln_ffn_bias": shift}
  weights |= {name: np.asarray(block[name]) for name in layer.scaled}
  if c.residual_scaling and t.fold:
    kernels[-1], biases[-1] = kernels[-1] / block["alpha"], biases[-1] / block["alpha"]
  for name, kernel, bias, has in zip(("ffn", "ffn_out"), kernels, biases, biased, strict=False):
    weights |= {name: kernel} | ({f"{name}_bias": bias} if has else {})
  return weights


def _head(p, c, t: Transforms, basis: _Basis) -> dict:
  """The final LayerNorm and the vocabulary projection."""
  head = p["token_embedding"].T if c.tie_embeddings else p["head"]
  scale, shift = p["ln_f"]["scale"], p["ln_f"]["bias"]
  if not t.fold:
    return {"ln_f_scale": scale, "ln_f_bias": shift, "head": head}
  weights = {"head": scale[:, None] * head, "head_bias": shift @ head}
  if not basis.trivial or basis.biased:
    weights |= {"basis": basis.matrix} | ({"basis_bias": basis.offset} if basis.biased else {})
  return weights
