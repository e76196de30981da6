"""Entropy-guided attention for private language models."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # else when it is first asked for: see __getattr__
  from entropy_attn import entropy as entropy
  from entropy_attn.attention import dot_product_attention as dot_product_attention
  from entropy_attn.run.pretrained import Pretrained

__all__ = ["dot_product_attention", "entropy", "load"]
__version__ = "0.1.0"


def load(source, step: int | None = None) -> "Pretrained":
  """A trained model, as `run.pretrained.load` returns it: .config, .variables and .tokenizer.

  Args:
    source: a run's folder, a folder of Hugging Face files, or a name on the Hub: gpt2, distilgpt2, owner/name.
    step: of a run's checkpoint; None: the newest that can be read.

  Raises:
    UserError: if there is none that can be read, or it is of a model that is not computed here.
  """
  from entropy_attn.run import pretrained  # only here: the attention alone needs neither Orbax nor TFDS

  return pretrained.load(source, step)


def __getattr__(name: str):
  """What is imported when it is first asked for: JAX alone takes a second, which a mistyped flag need not wait for."""
  if name == "dot_product_attention":
    from entropy_attn.attention import dot_product_attention

    return dot_product_attention
  if name in _submodules():
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_submodules()})


def _submodules() -> set[str]:
  return {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}
