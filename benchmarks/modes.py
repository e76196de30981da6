"""The table of tests/test_modes.py: which functions give in each mode of JAX what they give by default.

    python -m benchmarks.modes

Six minutes on two cores. A column is a function with all that it is tried with: implementations, masks,
dtypes.
"""

import argparse
import collections
from collections.abc import Iterable
import pathlib
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

from benchmarks import measure
from entropy_attn.report import tables

CHIPS = ("gpu", "tpu")


def found(path: pathlib.Path) -> Iterable[tuple[str, str, str]]:
  """(mode, function, "passed", "skipped" or "failed") of each cell, from the JUnit file that pytest wrote."""
  for case in ElementTree.parse(path).iter("testcase"):
    cell = case.get("name", "").partition("[")[2].removesuffix("]")
    mode, _, function = cell.partition(" | ")
    if not function:  # not of a function, but of the program that is made for a chip
      mode, _, chip = cell.rpartition("-")
      function = f"program[{chip}]"
      if chip not in CHIPS:
        continue
    kinds = {child.tag for child in case}
    yield mode, function, "skipped" if "skipped" in kinds else "failed" if kinds & {"failure", "error"} else "passed"


def table(cells: Iterable[tuple[str, str, str]]) -> str:
  """Modes down, functions across; what is tried, less what makes no sense there, and what failed of it."""
  counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)
  for mode, function, outcome in cells:
    counts[mode, function.partition("[")[0]][outcome] += 1
  modes, functions = (list(dict.fromkeys(key[axis] for key in counts)) for axis in range(2))
  rows = [[mode, *(_cell(counts[mode, function]) for function in functions)] for mode in modes]
  return tables.markdown(["mode", *functions], rows)


def _cell(outcomes: collections.Counter) -> str:
  if outcomes["failed"]:
    return f"{outcomes['failed']} of {outcomes['failed'] + outcomes['passed']} FAIL"
  return str(outcomes["passed"]) if outcomes["passed"] else "–"


def main(workers: int) -> int:
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "modes.xml"
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_modes.py", "-m", "", f"--junitxml={path}"]
    code = subprocess.run([*command, f"-n{workers}", "--dist=load"], check=False).returncode
    cells = list(found(path))
  total = collections.Counter(outcome for *_, outcome in cells)
  print(
    f"\n{measure.machine()}; {total['passed']} passed, {total['failed']} failed, {total['skipped']} make no sense\n"
  )
  print(table(cells))
  return code


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workers", type=int, default=2)
  sys.exit(main(parser.parse_args().workers))
