"""How the benchmarks measure: each figure in a process of its own, rivals taking turns, the median turn counts."""

import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time


def seconds(step, *, at_least: float = 2.0, times: int = 3) -> float:
  """The shortest of several calls of step(), which must wait for its result; the first is not counted."""
  step()
  best, started = float("inf"), time.perf_counter()
  while times > 0 or time.perf_counter() - started < at_least:
    before = time.perf_counter()
    step()
    best = min(best, time.perf_counter() - before)
    times -= 1
  return best


def peak_bytes() -> int:
  """The most memory that this process has held: of the accelerator, or else its resident set."""
  if "jax" in sys.modules:
    stats = sys.modules["jax"].devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
      return stats["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_turns(module: str, cases: list[tuple[str, ...]], rounds: int) -> dict[tuple[str, ...], dict]:
  """Runs `python -m module --one CASE…` for every case, `rounds` times in turn; keeps each case's median by seconds.

  What it keeps has "spread" besides: seconds of the fastest and of the slowest turn. A case that fails (out of memory,
  say) is {"error": its last line}, and not tried again.
  """
  found: dict[tuple[str, ...], list[dict]] = {case: [] for case in cases}
  failed: dict[tuple[str, ...], dict] = {}
  for turn in range(rounds):
    for case in cases:
      if case in failed:
        continue
      print(f"{module} {' '.join(case)} ({turn + 1}/{rounds}) …", file=sys.stderr, flush=True)
      done = subprocess.run([sys.executable, "-m", module, "--one", *case], capture_output=True, text=True, check=False)
      if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"]
        failed[case] = {"error": lines[-1][:200]}
        continue
      found[case].append(json.loads(done.stdout.strip().splitlines()[-1]))
  return {case: failed.get(case) or _median(numbers) for case, numbers in found.items()}


def _median(turns: list[dict]) -> dict:
  in_order = sorted(turns, key=lambda numbers: numbers["seconds"])
  return in_order[len(in_order) // 2] | {"spread": [in_order[0]["seconds"], in_order[-1]["seconds"]]}


def machine() -> str:
  """What this ran on, in words."""
  import jax

  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} × {device.device_kind}"
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
  return f"{len(os.sched_getaffinity(0))} cores of {(names or [platform.processor()])[0]}"
