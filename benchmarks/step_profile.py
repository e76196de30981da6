"""Where the time of one training step goes: the operations of a profiler's trace, by the time of all threads.

    python -m benchmarks.step_profile --length=512

Products that XLA hands to its own thread pool are not in the trace of a CPU: the processor's time of the step, which is
printed too, has them.
"""

import argparse
import collections
import pathlib
import re
import resource
import tempfile

import jax

from benchmarks import measure, train_step
from entropy_attn.report import tables

HEAD = ("operation", "what it is of", "calls", "ms", "% of all")


def times(trace: pathlib.Path) -> dict[str, tuple[float, int]]:
  """(ms, calls) of each operation of a trace; the time of what it calls is not its own."""
  found: dict[str, list] = collections.defaultdict(lambda: [0.0, 0])
  for path in trace.rglob("*.xplane.pb"):
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        open_events: list[tuple[float, str]] = []
        for event in sorted(line.events, key=lambda event: (event.start_ns, -event.duration_ns)):
          while open_events and event.start_ns >= open_events[-1][0]:
            open_events.pop()
          if open_events:
            found[open_events[-1][1]][0] -= event.duration_ns / 1e6
          found[event.name][0] += event.duration_ns / 1e6
          found[event.name][1] += 1
          open_events.append((event.start_ns + event.duration_ns, event.name))
  return {name: (ms, calls) for name, (ms, calls) in found.items()}


def origins(text: str) -> dict[str, str]:
  """What of the model each operation of a program is of: the end of its path, with its result's shape."""
  found = {}
  for name, shape, rest in re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (\S+) (.*)$", text, re.MULTILINE):
    path = re.search(r'op_name="([^"]*)"', rest)
    parts = [part for part in (path[1] if path else "").split("/") if part not in ("while", "body", "closed_call")]
    found[name] = f"{shape.partition('{')[0]} {'/'.join(parts[-3:])}"
  return found


def main(name: str, T: str, rows: int) -> None:
  _, step, program = train_step.jax_step(name, T)
  step()
  used = resource.getrusage(resource.RUSAGE_SELF)
  step()
  now = resource.getrusage(resource.RUSAGE_SELF)
  with tempfile.TemporaryDirectory() as folder:
    jax.profiler.start_trace(folder)
    step()
    jax.profiler.stop_trace()
    of = times(pathlib.Path(folder))
  known = origins(program.as_text())
  longest = sorted(known.keys() & of.keys(), key=lambda op: -of[op][0])
  whole = sum(of[op][0] for op in longest)
  table = []
  for op in longest[:rows]:
    ms, calls = of[op]
    table.append([op, known[op], str(calls), f"{ms:,.0f}", f"{100 * ms / whole:.1f}"])
  print(f"{measure.machine()}; {name}, T={T}; processor time of a step: {now.ru_utime - used.ru_utime:.1f} s, ", end="")
  print(f"of the system for it {now.ru_stime - used.ru_stime:.1f} s\n")
  print(tables.markdown(HEAD, table, left=(0, 1)))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--length", default="512", choices=sorted(train_step.CASES | train_step.LONGEST))
  parser.add_argument("--step", default=train_step.OURS[0], choices=train_step.OURS)
  parser.add_argument("--rows", type=int, default=20)
  arguments = parser.parse_args()
  main(arguments.step, arguments.length, arguments.rows)
