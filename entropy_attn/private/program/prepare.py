"""A model made ready to run privately: exponentials chosen on text, weights folded, ranges checked; and its twin."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from entropy_attn.private.program import ranges, spec, squares
from entropy_attn.private.program import weights as weights_lib
from entropy_attn.private.program.build import build, client_inputs, server_inputs
from entropy_attn.private.program.ops import run_plain
from entropy_attn.private.program.spec import Transforms
from entropy_attn.run.pretrained import Pretrained

CALIBRATION = 8  # sequences whose ranges are looked at


class Exact:
  """A model folded without approximations, on open values: what a private inference is compared with.

  It is folded once, here; tokens of any number run through it.

  Args:
    variables: of `model.GPT(model_config)`.
    model_config: the config's model group.
    transforms: those of the private inference.

  Raises:
    UserError: where transforms contradict the architecture or each other.
  """

  def __init__(self, variables: Mapping, model_config, transforms: Transforms):
    self.model = weights_lib.fold(variables, model_config, transforms.exactly(), ())

  def logits(self, tokens_N: np.ndarray, **options) -> jax.Array:
    """Logits [1, V] of the last position, or [N, V] of all, float32.

    Args:
      options: of `build.build`.

    Raises:
      UserError: for ids out of range, or more than the model has positions.
    """
    program = build(self.model.spec, len(tokens_N), **options)
    inputs = server_inputs(self.model.weights, len(tokens_N)) | client_inputs(self.model.spec, tokens_N)
    return run_plain(program, inputs)["logits"]


class Prepared(NamedTuple):
  """What `prepare` makes of a model.

  Attributes:
    private: to be run by two parties.
    exact: to compare with; it holds the weights a second time.
    tightest: the range that comes nearest to what its ring holds.
  """

  private: weights_lib.Model
  exact: Exact
  tightest: ranges.Range


def prepare(
  model: Pretrained,
  transforms: Transforms,
  length: int,
  error: float = squares.ERROR,
  *,
  reveal: str = "logits",
  top_k: int = spec.TOP_K,
) -> Prepared:
  """A model ready to run privately: exponentials are chosen for, and ranges checked on, CALIBRATION sequences.

  What its activations read, too: where that has no room in a 32-bit ring, activation_ring=auto becomes 64.

  Args:
    length: tokens of each sequence, of the run's own training text where there is one.
    error: of each layer's exponential; see `squares.exponential`.
    reveal, top_k: what the client learns: see `Spec`.

  Raises:
    UserError: where transforms contradict the architecture or each other, or numbers would leave the range of fixed
      point.
  """
  spec.check(transforms, model.config.model)  # before any text is read
  text_SxN = model.sequences(CALIBRATION, length, split="train")
  private, exact, found = fit(model, transforms, text_SxN, error, reveal=reveal, top_k=top_k)
  return Prepared(private, exact, ranges.check(found))


def fit(
  model: Pretrained,
  transforms: Transforms,
  tokens_SxN: np.ndarray,
  error: float = squares.ERROR,
  *,
  reveal: str = "logits",
  top_k: int = spec.TOP_K,
) -> tuple[weights_lib.Model, Exact, list[ranges.Range]]:
  """The private form that `prepare` makes, of any text, its twin, and what its numbers reach: whether or not they fit.

  Args:
    tokens_SxN: sequences of that text.

  Raises:
    UserError: where transforms contradict the architecture or each other.
  """
  c = model.config.model
  spec.check(transforms, c)
  exact = Exact(model.variables, c, transforms)
  exponentials = ranges.choose_exponentials(exact.model, transforms, tokens_SxN, error)
  private = weights_lib.fold(model.variables, c, transforms, exponentials)
  private = dataclasses.replace(private, spec=private.spec.revealing(reveal, top_k))
  found = ranges.measure(private, tokens_SxN)
  if transforms.activation_ring == "auto" and not all(r.fits for r in found if r.kind == "activation"):
    transforms = dataclasses.replace(transforms, activation_ring="64")
    private = weights_lib.fold(model.variables, c, transforms, exponentials)
    private = dataclasses.replace(private, spec=private.spec.revealing(reveal, top_k))
    found = ranges.measure(private, tokens_SxN)
  return private, exact, found
