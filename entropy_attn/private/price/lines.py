"""The lines between the two parties: how fast they are, and how long an inference takes over one."""

from collections.abc import Mapping
import contextlib
import pathlib

from entropy_attn import files
from entropy_attn.errors import UserError, nearest

LINES = {"LAN": (1000.0, 0.5), "WAN": (100.0, 80.0)}  # Mbit/s, and round-trip time in ms


def latency(cost: Mapping, megabits: float, rtt_ms: float, compute: float = 1.0) -> float:
  """Seconds over a line: all bytes one after the other, every round, and the computation.

  Args:
    cost: of `predict`, or a profile.
    megabits: a second.
    compute: the computation's part of what it takes on the machine of the calibration.
  """
  return cost["total_bytes"] * 8e-6 / megabits + cost["rounds"] * rtt_ms * 1e-3 + cost["seconds"] * compute


def latencies(
  cost: Mapping, named: Mapping[str, tuple[float, float]] = LINES, compute: float = 1.0
) -> dict[str, dict[str, float]]:
  """Of an inference over each line: latency_seconds, and online_latency_seconds of what is done with the prompt.

  Args:
    cost, compute: see `latency`.
  """
  online = cost["online"] | {"total_bytes": cost["online"]["bytes"]}
  parts = {"latency_seconds": cost, "online_latency_seconds": online}
  return {name: {line: latency(part, *of, compute) for line, of in named.items()} for name, part in parts.items()}


def parse(text: str, named: Mapping[str, tuple[float, float]] = LINES) -> tuple[float, float]:
  """Mbit/s and round-trip time in ms of a named line, or of 'MBIT,RTT'.

  Raises:
    UserError: for anything else.
  """
  if text in named:
    return named[text]
  with contextlib.suppress(ValueError):
    megabits, rtt = map(float, text.split(","))
    if _is_line(megabits, rtt):
      return megabits, rtt
  raise UserError(f"--line={text!r} is neither {', '.join(named)} nor MBIT,RTT such as 300,20{nearest(text, named)}")


def read(path: pathlib.Path) -> dict[str, tuple[float, float]]:
  """The lines of a JSON file, {"name": [Mbit/s, round-trip time in ms], …}.

  Raises:
    UserError: where it holds something else.
  """
  try:
    found = files.read_json(path)
    if found is None:
      raise UserError(f"--lines={path} does not exist")
    lines = {name: (float(megabits), float(rtt)) for name, (megabits, rtt) in found.items()}
  except OSError as error:
    raise UserError(f"--lines={path} cannot be read: {error.strerror}") from error
  except (ValueError, TypeError) as error:
    raise UserError(f'--lines={path} is not of the form {{"name": [MBIT, RTT], …}}: {error}') from error
  for name, line in lines.items():
    if not _is_line(*line):
      raise UserError(f"--lines={path}: {name} is no line: Mbit/s above 0, and a round-trip time of 0 ms or more")
  return lines


def _is_line(megabits: float, rtt: float) -> bool:
  return 0 < megabits < float("inf") and 0 <= rtt < float("inf")
