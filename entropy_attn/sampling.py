"""The next token from logits, the likeliest or one drawn: the same for models in the clear and for private clients.

NumPy alone. Letters in array names: V vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from entropy_attn.errors import UserError


def next_token(
  logits_V: np.ndarray,
  rng: np.random.Generator,
  *,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> int:
  """The likeliest token, or one drawn from softmax(logits / temperature) over those that `kept` leaves.

  It is drawn by Gumbel noise, as much for any vocabulary whatever is kept: logits that differ by a rounding, or lack
  tokens that would not have been drawn, give the same token for the same rng.

  Args:
    logits_V: any float; −inf is never drawn.
    rng: what is drawn with; a temperature of 0 takes nothing from it.
    temperature: 0: the likeliest, of equal ones the first.
    top_k, top_p: see `kept`, which follows the temperature.

  Raises:
    ValueError: where logits are NaN or +inf, or all −inf.
  """
  logits_V = np.asarray(logits_V, np.float64)
  if not logits_V.max(initial=-np.inf) < np.inf or np.isneginf(logits_V).all():
    raise ValueError("the logits are not finite")
  if temperature == 0:
    return int(np.argmax(logits_V))
  with np.errstate(over="ignore"):  # at a temperature near 0 all but the likeliest are at −inf
    scaled_V = (logits_V - logits_V.max()) / temperature
  noise_V = rng.gumbel(size=len(logits_V))
  return int(np.argmax(np.where(kept(scaled_V, top_k, top_p), scaled_V + noise_V, -np.inf)))


def kept(logits_V: np.ndarray, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
  """Which tokens may be drawn, boolean [V]: the top_k likeliest, and of these the nucleus of top_p.

  The nucleus (Holtzman et al., 2020, arXiv:1904.09751) is the fewest tokens whose probabilities sum to top_p or more.
  Of equally likely ones those with lower ids come first.

  Args:
    logits_V: finite or −inf.
    top_k: 0: all.
    top_p: in (0, 1], of what top_k leaves; 1: all.
  """
  V = len(logits_V)
  if not 0 < top_k < V and top_p >= 1:
    return np.ones(V, bool)
  order = np.argsort(-logits_V, kind="stable")
  order = order[:top_k] if top_k else order
  if top_p < 1:
    weights = np.exp(logits_V[order] - logits_V[order[0]])
    masses = np.cumsum(weights)
    order = order[: np.searchsorted(masses, top_p * masses[-1]) + 1]
  keeps = np.zeros(V, bool)
  keeps[order] = True
  return keeps


def check_prompt(ids: Sequence[int], vocab_size: int) -> None:
  """Raises UserError for a prompt without tokens, or with some that the model does not know."""
  if not ids:
    raise UserError("the prompt is empty: give at least one token")
  for i in ids:
    if not 0 <= i < vocab_size:
      raise UserError(f"token {i} is out of range: the model knows 0 to {vocab_size - 1}")
