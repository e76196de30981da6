"""Results that cannot be: how they are refused, and what their refusal tells to whom."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json

import numpy as np

from entropy_attn.private.parties import engine
from entropy_attn.private.program.spec import Settings, Spec

_FEW = 64  # token ids that are told one by one; of more, their SHA-256


class Impossible(Exception):
  """A result that no softmax, or no LayerNorm, can have given: fixed point overflowed, or the engine erred.

  Its text holds all that is needed to look into it, the tokens too: it is for the client alone, and the server is told
  no part of it.

  Attributes:
    rows: how many failed the check.
    circumstances: of what, and how it was computed.
  """

  def __init__(self, rows: int, circumstances: str):
    self.rows, self.circumstances = rows, circumstances
    super().__init__(
      f"{rows} row(s) are none that a softmax or a LayerNorm gives: numbers left the range of fixed point, or the "
      f"engine erred; the result is thrown away ({circumstances})"
    )


def check_sequences(failed: Mapping[int, Impossible], count: int, origin: str = "") -> None:
  """Raises Impossible where some of `count` sequences failed: the first of them in full, and which were right.

  Args:
    failed: by the index of the sequence.
    origin: where the sequences come from: a run, a seed.
  """
  if not failed:
    return
  first = min(failed)
  right = [i for i in range(count) if i not in failed]
  also = f"sequences {_listed(sorted(failed))} failed; " if len(failed) > 1 else ""
  were = f"sequences {_listed(right)} were right" if right else "none was right"
  raise Impossible(
    failed[first].rows,
    f"sequence {first} of {count}, counted from 0{origin and f', of {origin}'}: {failed[first].circumstances}; "
    f"{also}{were}",
  )


def circumstances(
  spec: Spec,
  tokens_N: np.ndarray,
  logits: np.ndarray | None,
  *,
  digest: str,
  settings: Settings,
  how: str,
  past: int = 0,
  layers: int | None = None,
) -> str:
  """What a result was of, and how it was computed, for an error that says that it cannot be.

  Args:
    logits: where they are revealed; else None.
    digest: of the program; see `engine.digest`.
    settings: of the engine.
    how: by whom it was computed.
    past: cached positions before the tokens.
    layers: so many were run; None: all.
  """
  transforms = hashlib.sha256(json.dumps(dataclasses.asdict(spec.transforms), sort_keys=True).encode()).hexdigest()
  tokens_N = np.asarray(tokens_N, "<i4")
  ids = _listed(tokens_N, ",") if len(tokens_N) <= _FEW else f"SHA-256 {hashlib.sha256(tokens_N.tobytes()).hexdigest()}"
  reach = "" if logits is None else f"logits up to {np.max(np.abs(logits)):.3g}; "
  return (
    f"{len(tokens_N)} tokens after {past}, {layers or len(spec.layers)} layers, {spec.num_heads} heads, "
    f"width {spec.d_model}, vocabulary {spec.vocab_size}; transforms {transforms[:16]}, {settings}, "
    f"program {digest[:16]}, engine {engine.version()}; {how}; {reach}tokens {ids}"
  )


def _listed(numbers, between: str = ", ") -> str:
  return between.join(map(str, numbers))
