"""The lines between the two parties: how fast they are, and how long an inference takes over one."""

from collections.abc import Mapping

from entropy_attn.errors import UserError

LINES = {"LAN": (1000.0, 0.5), "WAN": (100.0, 80.0)}  # Mbit/s, and round-trip time in ms


def latency(cost: Mapping, megabits: float, rtt_ms: float, compute: float = 1.0) -> float:
  """Seconds over a line: all bytes one after the other, every round, and the computation.

  Args:
    cost: of `predict`, or a profile.
    megabits: a second.
    compute: the computation's part of what it takes on the machine of the calibration.
  """
  return cost["total_bytes"] * 8e-6 / megabits + cost["rounds"] * rtt_ms * 1e-3 + cost["seconds"] * compute


def parse(text: str) -> tuple[float, float]:
  """Mbit/s and round-trip time in ms of LAN, WAN, or 'MBIT,RTT'.

  Raises:
    UserError: for anything else.
  """
  if text in LINES:
    return LINES[text]
  try:
    megabits, rtt = map(float, text.split(","))
    if 0 < megabits < float("inf") and 0 <= rtt < float("inf"):
      return megabits, rtt
  except ValueError:
    pass
  raise UserError(f"--line={text!r} is neither {', '.join(LINES)} nor MBIT,RTT such as 300,20")
