"""Entropy-guided attention for private language models."""

from entropy_attn import entropy
from entropy_attn.attention import dot_product_attention

__all__ = ["dot_product_attention", "entropy", "load"]


def load(source, step: int | None = None):
  """A trained model, as `run.pretrained.load` returns it: .config, .variables and .tokenizer.

  Args:
    source: a run's folder.
    step: of the checkpoint; None: the newest that can be read.

  Raises:
    UserError: if there is none that can be read.
  """
  from entropy_attn.run import pretrained  # only here: the attention alone needs neither Orbax nor TFDS

  return pretrained.load(source, step)
