"""What test_modes.py asks of each mode of JAX: the package's functions with inputs, and the letters of their axes.

Letters: B batch, T query length, S key length, H heads, K head width, L layers, D width, V vocabulary.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn import config, entropy
from entropy_attn.attention import dot_product_attention
from entropy_attn.kernels import gpu, tpu
from entropy_attn.loss import cross_entropy_sum, distilled_sum
from entropy_attn.model import GPT
from entropy_attn.train_step import init_state, make_train_step

SIZES = {"B": 2, "T": 12, "S": 12, "H": 2, "K": 8, "L": 2, "D": 8, "V": 16}
TOGETHER = {"+": jax.lax.psum, "/": jax.lax.pmean}  # before the letters of a sum, or of a mean, over the batch


@dataclasses.dataclass(frozen=True)
class Function:
  """A function of arrays, and what is known of it.

  Attributes:
    fn: arrays → a tuple of arrays.
    arrays: its arguments; a tree of arrays counts as one.
    axes: the letters of each argument's axes; of a tree "".
    outs: the letters of each result's axes.
    differentiable: False: `fn` has the gradients among its results.
  """

  fn: Callable
  arrays: tuple[Any, ...]
  axes: tuple[str, ...]
  outs: tuple[str, ...]
  differentiable: bool = True

  def cotangents(self):
    """Of the results: one wave over each, in its dtype."""
    wave = lambda x: jnp.asarray(np.cos(np.arange(math.prod(x.shape))).reshape(x.shape).astype(x.dtype))
    return jax.tree.map(wave, jax.eval_shape(self.fn, *self.arrays)) if self.differentiable else ()

  def floats(self) -> list[int]:
    """The places of the arguments that are differentiated."""
    return [i for i, x in enumerate(self.arrays) if jnp.issubdtype(jax.tree.leaves(x)[0].dtype, jnp.inexact)]

  def both(self, arrays, cotangents, fn=None):
    """The results, and the gradients of what the cotangents weigh, for each argument of floats."""
    fn, floats = fn or self.fn, self.floats()
    if not self.differentiable:
      return fn(*arrays), ()

    def of_floats(*differentiated):
      given = dict(zip(floats, differentiated, strict=True))
      return fn(*(given.get(i, x) for i, x in enumerate(arrays)))

    outs, vjp = jax.vjp(of_floats, *(arrays[i] for i in floats))
    return outs, vjp(cotangents)


def normal(axes: str, dtype=np.float32, seed=0):
  """A sample of the axes' sizes."""
  x = np.random.default_rng([seed, *map(ord, axes)]).normal(size=[SIZES[a] for a in axes])
  return jnp.asarray(x.astype(np.float32), dtype)


def integers(axes: str, below: int, seed=0):
  rng = np.random.default_rng([seed, *map(ord, axes)])
  return jnp.asarray(rng.integers(0, below, [SIZES[a] for a in axes]), jnp.int32)


def attention(implementation, dtype=jnp.float32, causal=True, masked=False):
  """Learned temperatures, both results."""

  def fn(q, k, v, temperature, *keep):
    return dot_product_attention(
      q, k, v, temperature=temperature, is_causal=causal, mask=keep[0] if keep else None, implementation=implementation
    )

  axes = ("BTHK", "BSHK", "BSHK", "HT")
  arrays = [normal(a, dtype, seed) for seed, a in enumerate(axes[:3])]
  arrays.append(jnp.abs(normal("HT")) + 1)
  if masked:
    axes = (*axes, "BS")
    arrays.append(integers("BS", 4) > 0)
    attend = fn
    fn = lambda *arrays: attend(*arrays[:4], arrays[4][:, None, None])
  return Function(fn, tuple(arrays), axes, ("BTHK", "BTH"))


def kernel(module, dtype=jnp.float32):
  """A Pallas kernel, interpreted: its forward and its backward pass as attention.py calls them."""

  def fn(q, k, v, row_scale, dout, dentropy):
    options = {"causal": True, "interpret": True}
    forward = module.forward(q, k, v, row_scale, None, with_rest=True, **options)
    return (
      forward.out_BxTxHxK,
      forward.entropy_BxHxT,
      *module.backward(q, k, v, row_scale, None, forward, dout, dentropy, **options),
    )

  axes = ("BTHK", "BSHK", "BSHK", "HT", "BTHK", "BHT")
  dtypes = (dtype, dtype, dtype, jnp.float32, dtype, jnp.float32)
  arrays = tuple(normal(a, d, seed) for seed, (a, d) in enumerate(zip(axes, dtypes, strict=True)))
  outs = ("BTHK", "BHT", "BTHK", "BSHK", "BSHK", "BHT")
  return Function(fn, arrays, axes, outs, differentiable=False)


def softmax_with_entropy(masked):
  mask = jnp.tri(SIZES["T"], SIZES["S"], dtype=bool)
  fn = (lambda x, mask: entropy.softmax_with_entropy(x, mask)) if masked else entropy.softmax_with_entropy
  return Function(fn, (normal("BHTS"), mask)[: 1 + masked], ("BHTS", "TS")[: 1 + masked], ("BHTS", "BHT"))


def penalty(**options):
  def fn(values, thresholds, strengths):
    return (entropy.penalty(values, thresholds, strengths_LxH=strengths, **options),)

  arrays = (jnp.abs(normal("LBTH")), 0.5 + normal("LH") / 10, normal("LH", seed=1))
  return Function(fn, arrays, ("LBTH", "LH", "LH"), ("/",))


def head_means():
  fn = lambda values: (entropy.head_means(values),)
  return Function(fn, (jnp.abs(normal("LBTH")),), ("LBTH",), ("/LH",))


def head_means_of_weighted():
  fn = lambda values, weights: (entropy.head_means(values, weights),)
  return Function(fn, (jnp.abs(normal("LBTH")), jnp.abs(normal("B"))), ("LBTH", "B"), ("/LH",))


def head_shares():
  return Function(lambda values: (entropy.head_shares(values),), (jnp.abs(normal("LH")),), ("LH",), ("",))


def head_weights():
  return Function(lambda strengths: (entropy.head_weights(strengths),), (normal("LH"),), ("LH",), ("LH",))


def cross_entropy(dtype="float32"):
  fn = lambda *operands: (cross_entropy_sum(*operands, dtype),)
  arrays = (normal("BTD"), normal("DV"), integers("BT", SIZES["V"]), jnp.abs(normal("BT")))
  return Function(fn, arrays, ("BTD", "DV", "BT", "BT"), ("+",))


def distilled():
  def fn(x, head, teacher_x, teacher_head, targets, weights):
    return distilled_sum(x, head, (teacher_x, teacher_head), targets, weights, weight=0.3, temperature=2.0)

  axes = ("BTD", "DV", "BTD", "DV", "BT", "BT")
  arrays = (*(normal(a, seed=seed) for seed, a in enumerate(axes[:4])), integers("BT", SIZES["V"]))
  return Function(fn, (*arrays, jnp.abs(normal("BT"))), axes, ("+",) * 3)


def settings(**fields):
  """Of a tiny model with all that is learned; or, with norms and GELU, GPT-2's."""
  c = config.codeparrot()
  c.model.update(num_layers=SIZES["L"], num_heads=SIZES["H"], d_model=SIZES["D"], vocab_size=SIZES["V"])
  c.model.update(context_length=SIZES["T"], max_positions=SIZES["T"], dtype="float32", init_std=0.4)
  c.model.update(embedding_dropout=0.0)
  c.model.update(fields)
  c.regularizer.weight = 1e-3
  c.train.update(batch_size=4, accumulation=2, steps=20)
  c.eval.batch_size = 4
  config.validate(c)
  return c


OURS = {**config.ARCHITECTURES["scfuffn_t"], "value_residual": "fixed"}


@functools.cache
def parameters(**fields):
  c = settings(**fields)
  return jax.jit(GPT(c).init)(jax.random.key(0), jnp.zeros((1, SIZES["T"]), jnp.int32))


def gpt(**fields):
  """Logits and entropies."""
  c = settings(**fields)

  def fn(variables, tokens):
    logits, out = GPT(c).apply(variables, tokens)
    return logits, out["entropy"]

  return Function(fn, (parameters(**fields), integers("BT", SIZES["V"])), ("", "BT"), ("BTV", "LBTH"))


def gpt_loss(**fields):
  """The summed cross-entropy, and the penalty on the entropies."""
  c = settings(**fields)

  def fn(variables, thresholds, tokens, targets, weights):
    total, out = GPT(c).apply(variables, tokens, targets, weights, method="cross_entropy")
    return total, entropy.penalty(out["entropy"], thresholds)

  arrays = (parameters(**fields), 0.5 + normal("LH") / 10, *(integers("BT", SIZES["V"], seed) for seed in (0, 1)))
  return Function(fn, (*arrays, jnp.abs(normal("BT"))), ("", "LH", "BT", "BT", "BT"), ("+", "/"))


def train_step(**fields):
  """One step of the trainer: the new state and its metrics."""
  c = settings(**fields)
  state = jax.jit(functools.partial(init_state, c))()
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, SIZES["V"], (4, SIZES["T"] + 1)), jnp.int32)
  batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((4, SIZES["T"]))}
  step = make_train_step(c)
  return Function(
    lambda state, batch: tuple(step(state, batch)), (state, batch), ("", ""), ("", ""), differentiable=False
  )


FUNCTIONS: dict[str, Callable[[], Function]] = {
  "attention[reference]": functools.partial(attention, "reference"),
  "attention[blockwise]": functools.partial(attention, "blockwise"),
  "attention[blockwise, mask]": functools.partial(attention, "blockwise", causal=False, masked=True),
  "attention[gpu]": functools.partial(attention, "gpu"),
  "attention[tpu]": functools.partial(attention, "tpu"),
  "attention[reference, bfloat16]": functools.partial(attention, "reference", jnp.bfloat16),
  "attention[blockwise, bfloat16]": functools.partial(attention, "blockwise", jnp.bfloat16),
  "kernel[gpu]": functools.partial(kernel, gpu),
  "kernel[gpu, bfloat16]": functools.partial(kernel, gpu, jnp.bfloat16),
  "kernel[tpu]": functools.partial(kernel, tpu),
  "kernel[tpu, bfloat16]": functools.partial(kernel, tpu, jnp.bfloat16),
  "softmax_with_entropy": functools.partial(softmax_with_entropy, False),
  "softmax_with_entropy[mask]": functools.partial(softmax_with_entropy, True),
  "penalty": penalty,
  "penalty[head_mean, causal]": functools.partial(penalty, reduction="head_mean", ceiling="causal"),
  "head_means": head_means,
  "head_means[weights]": head_means_of_weighted,
  "head_shares": head_shares,
  "head_weights": head_weights,
  "cross_entropy_sum": cross_entropy,
  "cross_entropy_sum[bfloat16]": functools.partial(cross_entropy, "bfloat16"),
  "distilled_sum": distilled,
  "GPT[SM+LN+G]": functools.partial(gpt, **config.ARCHITECTURES["ln_gelu"]),
  "GPT[ours]": functools.partial(gpt, **OURS),
  "GPT[ours, bfloat16]": functools.partial(gpt, **OURS, dtype="bfloat16"),
  "GPT loss": functools.partial(gpt_loss, **OURS),
  "train step": functools.partial(train_step, **OURS),
}


@functools.cache
def function(name: str) -> Function:
  return FUNCTIONS[name]()


@functools.cache
def arguments(name: str):
  """Of `Function.both`."""
  f = function(name)
  return f.arrays, f.cotangents()


@functools.cache
def expected(name: str):
  """Results and gradients in JAX's default mode."""
  return jax.device_get(jax.jit(function(name).both)(*arguments(name)))
