"""What is recorded of each head over training, made small enough for a page: thinned, 16 bits a number."""

import base64
from collections.abc import Sequence
import math

import numpy as np

BUDGET = 430_000  # numbers of all heads' series in one page: 1.2 MB. 12 × 12 heads × 700 records × 4 series fit
_MISSING = 65535


def thin(count: int, most: int) -> np.ndarray:
  """Indices of at most `most` (2 or more) of `count` records, evenly spaced, the first and the last among them."""
  if count <= most:
    return np.arange(count)
  return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def pack(values_SxLxH) -> dict:
  """Numbers of each head over steps in 16 bits: value = low + code (high − low) / 65534, and code 65535 where none is.

  Each head has a range of its own, so that the error is at most its range / 131,000.

  Returns:
    low and high, [L H] each, and codes, base64 of little-endian uint16 [S, L H].
  """
  values = np.asarray(values_SxLxH, np.float64)
  values = values.reshape(len(values), -1)
  finite = np.isfinite(values)
  low = np.where(finite, values, np.inf).min(axis=0, initial=np.inf)
  high = np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf)
  empty = ~finite.any(axis=0)
  low, high = np.where(empty, 0, low), np.where(empty, 0, high)
  low, high = (np.array([float(f"{x:.9g}") for x in ends]) for ends in (low, high))  # as JSON will have them
  span = np.where(high > low, high - low, 1)
  scaled = np.clip((np.where(finite, values, low) - low) / span, 0, 1)
  codes = np.where(finite, np.rint(scaled * (_MISSING - 1)), _MISSING)
  return {
    "low": low.tolist(),
    "high": high.tolist(),
    "codes": base64.b64encode(codes.astype("<u2").tobytes()).decode(),
  }


def unpack(packed: dict) -> np.ndarray:
  """The numbers of `pack`, [S, L H], with NaN where none is."""
  low, high = np.array(packed["low"]), np.array(packed["high"])
  codes = np.frombuffer(base64.b64decode(packed["codes"]), "<u2").reshape(-1, len(low)).astype(float)
  return np.where(codes == _MISSING, np.nan, low + codes * (high - low) / (_MISSING - 1))


def short(value: float | None, digits: int = 4) -> float | None:
  """A number with so many significant digits; None for what is no finite number, as JSON has neither."""
  if value is None or not math.isfinite(value):
    return None
  return float(f"{value:.{digits}g}")


def array(records: Sequence[dict], name: str) -> np.ndarray | None:
  """A field of all records, null as NaN; None where some record has it not."""
  if not records or not all(record.get(name) is not None for record in records):
    return None
  return np.array([record[name] for record in records], np.float64)


def penalty_shares(
  entropy_SxLxH, thresholds_SxLxH, weights_SxLxH=1.0, *, gamma: float, sides: str, largest: float
) -> np.ndarray:
  """Each head's part of the penalty on the heads' mean entropies (`entropy.penalty`, head_mean).

  Args:
    entropy_SxLxH: nats.
    weights_SxLxH: of the heads (`entropy.head_weights`).
    largest: E_max, nats: the mean over queries for ceiling=causal.

  Returns:
    [S, L, H] that sum to one over the heads, or are all zero where no head is penalised; NaN where an entropy is.
  """
  delta = entropy_SxLxH - thresholds_SxLxH * largest
  distance = np.abs(delta) if sides == "both" else delta
  cost = np.where(distance <= gamma * largest, 0, delta**2) * weights_SxLxH
  total = cost.sum(axis=(1, 2), keepdims=True)
  return np.divide(cost, total, out=np.zeros_like(cost), where=total != 0)
