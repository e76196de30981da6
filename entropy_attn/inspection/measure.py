"""What a model says of a text: the entropies of its heads, without any T × T matrix, and the loss.

Letters in array names: B windows of a batch, T tokens of a window, H heads, L layers, N tokens.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import entropy as entropy_lib
from entropy_attn.data.tokenizer import Tokenizer
from entropy_attn.errors import UserError
from entropy_attn.inspection import text as text_lib
from entropy_attn.inspection.text import Windows
from entropy_attn.model import GPT
from entropy_attn.progress import bar
from entropy_attn.run.pretrained import Pretrained

_BATCH = 4096  # tokens of a batch, at least a window
KEPT = 4096  # tokens whose own entropies are kept


def measure(model: Pretrained, windows: Windows, tokenizer: Tokenizer, kept: int = KEPT) -> dict:
  """Reads the windows of a text, a batch at a time: memory is that of a batch and of what is kept.

  Args:
    kept: the first so many tokens of the text have their own entropies in the result.

  Returns:
    tokens, windows, width; loss (nats a token), perplexity, predicted (tokens), bits_per_byte and bytes (None where the
    tokenizer does not tell its tokens' bytes); nonfinite_rows_L; the `entropy.head_statistics` of entropy_LxH, the
    mean over all rows of all windows, as evaluation takes it; collapsed_heads and overloaded_heads by name; profile
    (see `profile`); and kept: strings, positions (in their window, from 0) and entropy_LxHxN (nats, float32) of tokens.
  """
  c = model.config
  size = min(len(windows), max(1, _BATCH // windows.width))
  step, variables = _jitted_step(GPT(c)), jax.device_put(model.variables)
  bytes_V = tokenizer.token_bytes
  sums, parts, positions, done, size_of_text = None, [], [], 0, 0
  with bar(what="inspect", unit="window", total=len(windows)) as shown:
    for batch in windows.batches(size):
      found, entropy_LxBxTxH = step(variables, *(batch[name] for name in ("inputs", "targets", "weights", "real")))
      found = {name: np.asarray(value, np.float64) for name, value in jax.device_get(found).items()}
      sums = found if sums is None else {name: sums[name] + found[name] for name in sums}
      if bytes_V is not None:
        size_of_text += int(np.sum(_of(bytes_V, batch["targets"]) * (batch["weights"] > 0)))
      if done < kept:
        own = np.argwhere(batch["judged"])[: kept - done]
        done += len(own)
        positions.append(own[:, 1])
        parts.append(np.asarray(entropy_LxBxTxH)[:, own[:, 0], own[:, 1]])
      shown.update(int(batch["real"].sum()))
  loss = float(sums["nll"] / sums["predicted"])
  entropy_LxTxH = sums["entropy_LxTxH"] / len(windows)
  entropy_LxH = entropy_LxTxH.mean(axis=1)
  largest = max_entropy(c, windows.width)
  return {
    "tokens": len(windows.ids_N),
    "windows": len(windows),
    "width": windows.width,
    "loss": loss,
    "perplexity": math.exp(loss) if loss < 700 else math.inf,
    "predicted": int(sums["predicted"]),
    "bits_per_byte": float(sums["nll"]) / size_of_text / math.log(2) if size_of_text else None,
    "bytes": size_of_text or None,
    "nonfinite_rows_L": sums["nonfinite_rows_L"].astype(int),
    **entropy_lib.head_statistics(entropy_LxH, largest),
    "collapsed_heads": entropy_lib.collapsed_heads(entropy_LxH, largest),
    "overloaded_heads": entropy_lib.overloaded_heads(entropy_LxH, largest),
    "profile": profile(entropy_LxTxH),
    "kept": {
      "strings": text_lib.strings(tokenizer, windows.ids_N[:done]),
      "positions": np.concatenate(positions),
      "entropy_LxHxN": np.moveaxis(np.concatenate(parts, axis=1), 1, 2),
    },
  }


def max_entropy(config, width: int) -> float:
  """The Max of the head bins for windows of `width` tokens, nats: the run's own, or what so few tokens allow.

  Raises:
    UserError: where one token is all that a window has.
  """
  if width < 2:
    raise UserError("windows of one token have no entropy: the model's context must be two tokens or more")
  if config.eval.max_entropy is not None or width == config.model.context_length:
    return config_lib.bins_max(config)
  return config_lib.causal_ceiling(width)


def profile(entropy_LxTxH: np.ndarray) -> list[dict]:
  """Mean entropies by how many tokens a row reads: 2, 3 to 4, 5 to 8 and so on, with the mean of what it can reach.

  Returns:
    first and last (tokens that a row reads), ceiling (mean log of it, nats), entropy (over all heads) and entropy_LxH.
  """
  T, found, first = entropy_LxTxH.shape[1], [], 2
  while first <= T:
    last = min(T, 2 * (first - 1))
    mean_LxH = entropy_LxTxH[:, first - 1 : last].mean(axis=1)
    ceiling = float(np.mean(np.log(np.arange(first, last + 1))))
    found.append(
      {"first": first, "last": last, "ceiling": ceiling, "entropy": float(mean_LxH.mean()), "entropy_LxH": mean_LxH}
    )
    first = last + 1
  return found


def _jitted_step(model: GPT):
  """(variables, inputs, targets, weights, real) → sums over the batch, and the entropies [L, B, T, H]."""

  def step(variables, inputs_BxT, targets_BxT, weights_BxT, real_B):
    nll, out = model.apply(variables, inputs_BxT, targets_BxT, weights_BxT, method="cross_entropy")
    entropy = out["entropy"]
    real = real_B[:, None, None] > 0
    sums = {
      "nll": nll,
      "predicted": jnp.sum(weights_BxT),
      "entropy_LxTxH": jnp.sum(jnp.where(real, entropy, 0), axis=1),
      "nonfinite_rows_L": jnp.sum(~jnp.isfinite(entropy) & real, axis=(1, 2, 3)),
    }
    return sums, entropy

  return jax.jit(step)


def _of(values_V: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """The value of each id; 0 for ids that the tokenizer has no entry for."""
  return np.where(ids < len(values_V), values_V[np.minimum(ids, len(values_V) - 1)], 0)
