"""GPT-2 as Flax modules: every architecture of the paper by orthogonal fields of config.model.

Letters in array names: B batch, T tokens, D model width, H heads, K head width, V vocabulary, L layers.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from entropy_attn import curriculum, parts, reparam, sharding, sizes
from entropy_attn.attention import dot_product_attention
from entropy_attn.cache import Cache
from entropy_attn.loss import cross_entropy_sum

# Logical axes of the activations; `sharding.Rules` maps them to the mesh.
_STREAM = ("batch", "length", "stream")
_HEADS = ("batch", "length", "heads", "head_width")

# Of what the backward pass needs of a norm, its input alone is kept.
_LayerNorm = functools.partial(nn.remat(nn.LayerNorm, prevent_cse=False), dtype=jnp.float32)

# What each choice of a field of config.model stands for; `config` offers these and no others.
NORMS: dict[str, Callable] = {"layernorm": _LayerNorm, "none": lambda name, epsilon: lambda x: x}
GELUS = {"erf": functools.partial(nn.gelu, approximate=False), "tanh": functools.partial(nn.gelu, approximate=True)}
ACTIVATIONS: dict[str, Callable] = {
  "gelu": lambda c: GELUS[c.gelu],
  "relu": lambda c: nn.relu,
  "identity": lambda c: lambda x: x,
}
FFNS = ("mlp", "fused")
BIASED = {"none": (), "qk": ("q", "k"), "all": ("q", "k", "v", "o", "up", "down", "fused")}  # the linears that have one
TEMPERATURES: dict[str, Any] = {  # their shapes
  "none": None,
  "per_head": lambda H, T: (H,),
  "per_head_position": lambda H, T: (H, T),
}
TEMPERATURE_FORMS = {  # what is learned of a temperature t, and t of what is learned
  "direct": (lambda t: t, lambda learned: learned),
  "log": (math.log, jnp.exp),
}
# Of what a block's last linear writes into the residual stream: GPT-2 divides by the root of how many there are.
OUT_INITS = {"plain": lambda c: c.init_std, "depth_scaled": lambda c: c.init_std / (2 * c.num_layers) ** 0.5}
VALUE_RESIDUALS = ("none", "fixed")
DTYPES = ("bfloat16", "float32")


def head_axes(model_config) -> str:
  """Axes of a model's vocabulary projection."""
  # No transpose: a loop over chunks of tokens would first copy the whole.
  return "VD" if model_config.tie_embeddings else "DV"


class GPT(nn.Module):
  """The whole model.

  The deepest config.ffns_removed blocks are attention alone (AERO: Jha & Reagen, 2024, arXiv:2410.13060).

  Attributes:
    config: the `model` group of a config, or a whole config, whose `model` group is taken.
    fading: what fades by the `curriculum` group of a whole config; None: nothing.

  Example:
    variables = GPT(config).init(jax.random.key(0), tokens_BxT)
    logits_BxTxV, out = GPT(config).apply(variables, tokens_BxT)

  `out` holds what the head statistics need:
    entropy [L, B, T, H]: of each query's attention, nats, float32;
    nonfinite_tokens [L]: tokens whose residual stream after that block has a NaN or infinite entry, int32;
    keys, values [L, B, T, H, K]: with a cache alone, what `Cache.extended` adds to it.
  """

  config: ConfigDict | FrozenConfigDict
  fading: FrozenConfigDict | None = None

  def __post_init__(self):
    self.fading = curriculum.of(self.config) or self.fading
    self.config = FrozenConfigDict(self.config.get("model", self.config))
    super().__post_init__()

  def setup(self):
    c = self.config
    normal = nn.initializers.normal(c.init_std)
    self.token_embedding = self.param("token_embedding", normal, (c.vocab_size, c.d_model))
    self.position_embedding = self.param("position_embedding", normal, (c.max_positions, c.d_model))
    if not c.tie_embeddings:
      self.head = self.param("head", normal, (c.d_model, c.vocab_size))
    self.dropout = nn.Dropout(c.embedding_dropout)
    block = nn.remat(Block, prevent_cse=False) if c.remat else Block
    stack = lambda length, has_ffn: nn.scan(
      block,
      variable_axes={"params": 0, "spectral": 0, curriculum.COLLECTION: 0},
      split_rngs={"params": True},
      length=length,
      in_axes=(0, nn.broadcast, 0),
    )(c, self.fading, has_ffn)
    # Their names are reparam.STACKS.
    if c.ffns_removed < c.num_layers:
      self.blocks = stack(c.num_layers - c.ffns_removed, True)
    if c.ffns_removed:
      self.blocks_without_ffn = stack(c.ffns_removed, False)
    self.ln_f = _LayerNorm(epsilon=c.layer_norm_epsilon)

  def __call__(
    self,
    tokens_BxT: jax.Array,
    *,
    positions_BxT: jax.Array | None = None,
    mask_BxT: jax.Array | None = None,
    train: bool = False,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits float32 [B, T, V], and `out`.

    Args:
      tokens_BxT: int32.
      positions_BxT: the row of the position table of each token, int32; None: 0 to T − 1. One that is not in the table
        makes its token NaN.
      mask_BxT: True for a token, False for padding, which nobody attends to and whose own entropies are 0; None: no
        padding. It moves no position: text padded at its front needs `positions_BxT` besides.
      train: draws the embedding dropout (needs rngs={'dropout': key}).
      cache: of the tokens before these, with room for them. None: these are the first.

    Raises:
      ValueError: if T exceeds the positions that the parameters hold; for positions where each has a temperature; for a
        mask with a cache.
    """
    x_BxTxD, out = self.features(tokens_BxT, positions_BxT=positions_BxT, mask_BxT=mask_BxT, train=train, cache=cache)
    return self.logits(x_BxTxD), out

  def features(
    self,
    tokens_BxT: jax.Array,
    *,
    positions_BxT: jax.Array | None = None,
    mask_BxT: jax.Array | None = None,
    train: bool = False,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The final, normalised hidden state float32 [B, T, D], and `out`; arguments are those of a call."""
    c = self.config
    T = tokens_BxT.shape[1]
    longest = c.context_length if c.temperature == "per_head_position" else c.max_positions
    if longest < T:
      raise ValueError(f"{T} tokens exceed the {longest} positions of this model")
    if positions_BxT is not None and c.temperature == "per_head_position":
      raise ValueError("positions_BxT: a model of a temperature a position reads positions 0 to T − 1 alone")
    if mask_BxT is not None and cache is not None:
      raise ValueError("mask_BxT: a cache keeps no padding")
    embedding_VxD = sharding.constrain(self.token_embedding, ("vocab", None))
    x_BxTxD = parts.take(embedding_VxD, tokens_BxT)
    if c.scale_embeddings:
      x_BxTxD = x_BxTxD * c.d_model**0.5
    position_BxTxD = _rows(self.position_embedding, T, cache)[None]
    if positions_BxT is not None:
      position_BxTxD = parts.take(self.position_embedding, positions_BxT, mode="fill")
    x_BxTxD = self.dropout(x_BxTxD + position_BxTxD, deterministic=not train)
    x_BxTxD = sharding.constrain(x_BxTxD, _STREAM)
    x_BxTxD, out = self.through_blocks(x_BxTxD, mask_BxT, cache)
    return self.ln_f(x_BxTxD), out

  def through_blocks(
    self, x_BxTxD: jax.Array, mask_BxT: jax.Array | None = None, cache: Cache | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The residual stream after all blocks, and `out`."""
    c = self.config
    first_BxTxHxK = None
    if c.value_residual == "fixed":
      B, T, D = x_BxTxD.shape
      none_yet = jnp.zeros_like(x_BxTxD, jnp.dtype(c.dtype)).reshape(B, T, c.num_heads, D // c.num_heads)
      first_BxTxHxK = sharding.constrain(none_yet, _HEADS)
    carry, outs, kept = (x_BxTxD, first_BxTxHxK), [], c.num_layers - c.ffns_removed
    layers, of = jnp.arange(c.num_layers), lambda part: jax.tree.map(lambda x: x[part], cache)
    if kept:
      carry, out = self.blocks(carry, layers[:kept], mask_BxT, of(slice(kept)))
      outs.append(out)
    if c.ffns_removed:
      carry, out = self.blocks_without_ffn(carry, layers[kept:], mask_BxT, of(slice(kept, None)))
      outs.append(out)
    return carry[0], outs[0] if len(outs) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)

  def logits(self, x_BxTxD: jax.Array) -> jax.Array:
    """The vocabulary projection, float32 [B, T, V]."""
    dtype = jnp.dtype(self.config.dtype)
    product = functools.partial(jnp.einsum, f"BTD,{head_axes(self.config)}->BTV", preferred_element_type=jnp.float32)
    return product(x_BxTxD.astype(dtype), self.projection().astype(dtype))

  def cross_entropy(
    self,
    tokens_BxT: jax.Array,
    targets_BxT: jax.Array,
    weights_BxT: jax.Array,
    *,
    positions_BxT: jax.Array | None = None,
    mask_BxT: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the tokens' losses, nats, without ever holding the logits of all; and `out`."""
    x_BxTxD, out = self.features(tokens_BxT, positions_BxT=positions_BxT, mask_BxT=mask_BxT, train=train)
    operands = x_BxTxD, self.projection(), targets_BxT, weights_BxT
    return cross_entropy_sum(*operands, self.config.dtype, head_axes(self.config)), out

  def projection(self) -> jax.Array:
    """The vocabulary projection, of the axes `head_axes`: the token embedding itself where they are tied."""
    return self.token_embedding if self.config.tie_embeddings else self.head


class Block(nn.Module):
  """One pre-LN decoder block; returns ((x, v_1), out) with the entropies of its heads. The residual stream is float32.

  Attributes:
    config: the model group.
    has_ffn: False: attention alone.
  """

  config: FrozenConfigDict
  fading: FrozenConfigDict | None
  has_ffn: bool = True

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, jax.Array | None],
    layer: jax.Array,
    mask_BxT: jax.Array | None = None,
    cache: Cache | None = None,
  ):
    x_BxTxD, first_BxTxHxK = carry
    x_BxTxD, out, first_BxTxHxK = self.attend(x_BxTxD, first_BxTxHxK, layer, mask_BxT, cache)
    if self.has_ffn:
      x_BxTxD = self.feed_forward(x_BxTxD)
    nonfinite = jnp.sum(~jnp.all(jnp.isfinite(x_BxTxD), axis=-1), dtype=jnp.int32)
    return (x_BxTxD, first_BxTxHxK), out | {"nonfinite_tokens": nonfinite}

  def attend(
    self, x_BxTxD: jax.Array, first_BxTxHxK, layer: jax.Array, mask_BxT: jax.Array | None, cache: Cache | None
  ):
    """x + MHA(LN(x)), what `out` has of it, and v_1.

    With value residuals (Zhou et al., 2024, arXiv:2410.17897, both of their weights fixed at 1/2) every layer but the
    first attends to (v + v_1) / 2, v_1 being the values of the first layer.
    """
    c = self.config
    B, T, D = x_BxTxD.shape
    H, K = c.num_heads, D // c.num_heads
    linear = functools.partial(Linear, c, D)
    h_BxTxD = self.norm("ln_attn")(x_BxTxD).astype(c.dtype)
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = (
      sharding.constrain(
        linear(name=name)(h_BxTxD).reshape(B, T, H, K),
        _HEADS,
      )
      for name in ("q", "k", "v")
    )
    if c.value_residual == "fixed":
      first_BxTxHxK = jnp.where(layer == 0, v_BxTxHxK, first_BxTxHxK)
      v_BxTxHxK = (v_BxTxHxK + first_BxTxHxK) / 2
    arrays = {"query": q_BxTxHxK, "key": k_BxTxHxK, "value": v_BxTxHxK}
    arrays["scale"] = jnp.asarray(sizes.score_scale(c, layer), jnp.float32)
    axes: list[tuple[str | None, ...]] = [*[_HEADS] * 3, ()]
    causal, new = True, {}
    if cache is not None:
      new = {"keys": k_BxTxHxK, "values": v_BxTxHxK}
    if cache is not None and cache.keys.shape[1]:  # of one without room all are new
      arrays["key"], arrays["value"], arrays["mask"] = cache.joined(k_BxTxHxK, v_BxTxHxK)
      axes, causal = [*axes, (None,) * 4], False
    if c.temperature != "none":
      arrays["temperature"] = self.temperature(T, cache)
      axes.append(("heads", "length"))
    if mask_BxT is not None:
      arrays["mask"] = mask_BxT[:, None, None, :]
      axes.append(("batch", None, None, "length"))
    attention = functools.partial(dot_product_attention, is_causal=causal, implementation=c.attention)
    out_BxTxHxK, entropy_BxTxH = sharding.per_shard(
      lambda *parts: attention(**dict(zip(arrays, parts, strict=True))),
      axes,
      (_HEADS, _HEADS),
      *arrays.values(),
    )
    if mask_BxT is not None:
      entropy_BxTxH = jnp.where(mask_BxT[..., None], entropy_BxTxH, 0)
    out_std = OUT_INITS[c.attention_out_init](c)
    out_BxTxD = linear(init_std=out_std, name="o")(out_BxTxHxK, lambda out: out.reshape(B, T, D))
    out_BxTxD = out_BxTxD.astype(x_BxTxD.dtype)
    return sharding.constrain(x_BxTxD + out_BxTxD, _STREAM), {"entropy": entropy_BxTxH, **new}, first_BxTxHxK

  def temperature(self, T: int, cache: Cache | None) -> jax.Array:
    """The learned softmax temperature t of each head, [H], or of each head and query, [H, T] (appendix A)."""
    c = self.config
    to_learn, of_learned = TEMPERATURE_FORMS[c.temperature_form]
    start = nn.initializers.constant(to_learn(c.temperature_init))
    learned = self.param("temperature", start, TEMPERATURES[c.temperature](c.num_heads, c.context_length))
    return of_learned(_rows(learned.T, T, cache).T if learned.ndim == 2 else learned)

  def feed_forward(self, x_BxTxD: jax.Array) -> jax.Array:
    """x + FFN(LN(x)), or with residual scaling beta x + FFN(LN(x)) / alpha (eq. 8)."""
    c = self.config
    D = x_BxTxD.shape[-1]
    out_std = OUT_INITS[c.ffn_out_init](c)
    linear = functools.partial(Linear, c)
    h_BxTxD = self.norm("ln_ffn")(x_BxTxD).astype(c.dtype)
    if c.ffn == "fused":
      h_BxTxD = linear(D, init_std=out_std, name="fused")(h_BxTxD)
    else:
      h_BxTxF = linear(sizes.ffn_width(c), name="up")(h_BxTxD)
      h_BxTxD = linear(D, init_std=out_std, name="down")(h_BxTxF, self.activation())
    h_BxTxD = h_BxTxD.astype(x_BxTxD.dtype)
    if c.residual_scaling:
      alpha = self.param("alpha", nn.initializers.constant(c.alpha_init), ())
      beta = self.param("beta", nn.initializers.constant(c.beta_init), ())
      x_BxTxD, h_BxTxD = beta * x_BxTxD, h_BxTxD / alpha
    return sharding.constrain(x_BxTxD + h_BxTxD, _STREAM)

  def norm(self, name: str):
    """x → its norm: the config's, or one that fades."""
    fading, kind = self.fading, NORMS[self.config.norm]
    if fading is not None and fading.norm != "none":
      kind = functools.partial(curriculum.Norm, keeps_bias=fading.norm_bias == "kept")
    return kind(name=name, epsilon=self.config.layer_norm_epsilon)

  def activation(self):
    """x → its activation: the config's, or one that fades."""
    fading = self.fading
    if fading is not None and fading.activation != "identity":
      return curriculum.Activation(ACTIVATIONS[fading.activation](self.config), name="activation")()
    return ACTIVATIONS[self.config.activation](self.config)


def _rows(table: jax.Array, T: int, cache: Cache | None) -> jax.Array:
  """Of a table of positions those of T tokens: the first, or those after a cache's."""
  return table[:T] if cache is None else jax.lax.dynamic_slice_in_dim(table, cache.length.reshape(-1)[0], T)


class Linear(nn.Module):
  """x W + b in config.dtype: W normalised if config.reparam names this linear, b there if config.bias does."""

  config: FrozenConfigDict
  features: int
  init_std: float | None = None  # None: config.init_std

  @nn.compact
  def __call__(self, x: jax.Array, before: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
    """before(x) W + b; the backward pass keeps x alone, and computes before(x) again."""
    c = self.config
    dtype = jnp.dtype(c.dtype)
    std = c.init_std if self.init_std is None else self.init_std
    shape = jax.eval_shape(before, x).shape

    def product(x, kernel):
      # All tokens on one axis: the product of the kernel's gradient then needs no transposed copy of what it sums over.
      return before(x).reshape(-1, shape[-1]).astype(dtype) @ kernel.astype(dtype)

    kernel = self.param("kernel", nn.initializers.normal(std), (shape[-1], self.features))
    kind = reparam.kind_of(self.name, c)
    if kind == "weight":
      kernel = reparam.weight_normalise(kernel, self.param("gain", lambda _: reparam.column_norms(kernel)))
    elif kind == "spectral":
      kernel = self.spectral(kernel)
    elif kind == "sigma":
      kernel = self.param("gain", nn.initializers.ones_init(), ()) * self.spectral(kernel)
    y = jax.checkpoint(product, prevent_cse=False)(x, kernel).reshape(*shape[:-1], self.features)
    if self.name in BIASED[c.bias]:
      bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(dtype)
      y = y + jnp.expand_dims(bias, range(y.ndim - 1))
    return y

  def spectral(self, kernel: jax.Array) -> jax.Array:
    """One power iteration wherever the collection 'spectral' is mutable (a training step); none in evaluation."""
    u = self.variable("spectral", "u", lambda: jax.random.normal(self.make_rng("params"), (self.features,)))
    if self.is_mutable_collection("spectral"):
      # A random start needs more than one; torch's parametrisation takes 15 too.
      u.value = reparam.power_iteration(kernel, u.value, steps=15 if self.is_initializing() else 1)
    return reparam.spectral_normalise(kernel, u.value)
