"""Distillation: a trained model, the teacher, sets targets for the logits and for the entropies of the heads.

The loss is (1 − weight) CE + weight t² KL + entropy_weight · gap. The KL is that of the logits divided by t (Hinton,
Vinyals & Dean 2015, arXiv:1503.02531). The gap is the mean squared difference of the attention entropies of the same
layer, head and query: each query attends, and is compared, alone, as where attention itself is distilled (TinyBERT,
Jiao et al. 2020, arXiv:1909.10351), and as the published penalty takes them. A mean over queries would let one that
attends everywhere pay for one that attends nowhere.

Letters in array names: B batch, T tokens, D model width, V vocabulary, L layers, H heads.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from entropy_attn.loss import distilled_sum
from entropy_attn.model import GPT, head_axes


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model to learn from.

  Attributes:
    config: of its run.
    variables: what `GPT(config).apply` takes, on the mesh: a constant of the training step.
  """

  config: ConfigDict
  variables: Mapping


def lesson(config: ConfigDict, variables: Mapping, tokens_BxT: jax.Array) -> dict[str, jax.Array]:
  """What a teacher says of some tokens, in evaluation mode, without its logits.

  Args:
    config, variables: of a `Teacher`.

  Returns:
    x [B, T, D], its final hidden states; head, of the axes `model.head_axes`; entropy [L, B, T, H], nats. No gradient
    flows into them.
  """
  features = lambda model: (*model.features(tokens_BxT), model.projection())
  x_BxTxD, out, head = GPT(config).apply(variables, method=features)
  return jax.lax.stop_gradient({"x": x_BxTxD, "head": head, "entropy": out["entropy"]})


def losses(config: ConfigDict, teacher_config: ConfigDict, taught: Mapping):
  """A method of the student in place of `GPT.cross_entropy`, which learns from a `lesson`, too.

  It returns the sums of `loss.distilled_sum`, and `out`.
  """
  d, models = config.distill, (config.model, teacher_config.model)
  dtypes, axes = tuple(m.dtype for m in models), tuple(map(head_axes, models))

  def method(model: GPT, tokens_BxT, targets_BxT, weights_BxT, *, train: bool):
    x_BxTxD, out = model.features(tokens_BxT, train=train)
    teacher = taught["x"], taught["head"]
    sums = distilled_sum(
      x_BxTxD, model.projection(), teacher, targets_BxT, weights_BxT,
      weight=d.weight, temperature=d.temperature, dtypes=dtypes, axes=axes,
    )  # fmt: skip
    return sums, out

  return method


def entropy_gap(entropy_LxBxTxH: jax.Array, taught: Mapping) -> jax.Array:
  """The mean squared difference from the entropies of a `lesson`, nats², over layers, batch, queries and heads."""
  return jnp.mean(jnp.square(entropy_LxBxTxH - taught["entropy"]))


def added(settings: ConfigDict, metrics: Mapping) -> jax.Array:
  """What a teacher adds to the cross-entropy in the loss, of what a step measured; settings: the group `distill`."""
  d = settings
  kl, gap = metrics["distillation"], metrics.get("entropy_gap", 0.0)
  return d.weight * (d.temperature**2 * kl - metrics["cross_entropy"]) + d.entropy_weight * gap
