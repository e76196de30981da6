"""The whole inspection of a model on a text, and its numbers as JSON has them."""

from collections.abc import Mapping
import pathlib

import numpy as np

from entropy_attn import config as config_lib
from entropy_attn.inspection import measure, readiness
from entropy_attn.inspection import text as text_lib
from entropy_attn.run.pretrained import Pretrained

_DIGITS = 4  # after the point, of a token's entropy


def inspect(
  model: Pretrained, path: pathlib.Path | None, *, kept: int = measure.KEPT, judged: int = readiness.SEQUENCES
) -> dict:
  """What `measure.measure` and `readiness.judge` find of a model on a text.

  Args:
    path: of the text; "-": standard input; None: the validation text that the model's run keeps.
    kept: tokens from the text's start that have their own entropies in the result.
    judged: sequences that fixed point is judged on; 0: it is not.

  Returns:
    model, architecture, text, own_text (whether it is the run's), context; what `measure.measure` finds; and private:
    the verdict of `readiness.judge`.

  Raises:
    UserError: where the text or its tokenizer cannot be read, or do not fit the model.
  """
  windows, tokenizer = text_lib.open_windows(model, path)
  found = measure.measure(model, windows, tokenizer, kept)
  private = {"ready": None, "text": "not judged: --judged=0"}
  if judged:
    private = readiness.judge(model, windows.spread(judged, readiness.LENGTH))
  return {
    "model": model.description,
    "architecture": config_lib.architecture_name(model.config),
    "text": windows.name,
    "own_text": path is None,
    "context": model.config.model.context_length,
    **found,
    "private": private,
  }


def rounded(found: Mapping) -> dict:
  """The same with the tokens' entropies as short as their precision is."""
  kept = found["kept"]
  entropy_LxHxN = np.round(np.asarray(kept["entropy_LxHxN"], np.float64), _DIGITS)
  return {**found, "kept": {**kept, "entropy_LxHxN": entropy_LxHxN}}
