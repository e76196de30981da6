"""Text that is printed piece by piece, with a bar at work between the pieces, as a terminal's screen shows it."""

import os
import pty
import subprocess
import sys
import termios

import pyte
import pytest

SCRIPT = """
from collections import namedtuple
import os
import sys
from entropy_attn import prompting
from entropy_attn.private.parties.bar import Steps

above, pieces = map(int, sys.argv[1:])
Step, bar = namedtuple("Step", "kind layer"), Steps("private", below=True)
for above in range(above):
  print("above", above)
for n, piece in enumerate(("import nu", "mpy as np, which", " is\\na line", " and more")):
  for index in range(3):
    bar(Step("scores", 1), index, 3)
  if n == pieces:
    os._exit(0)  # as it looks at that time
  bar.close()
  prompting.show(piece)
print()
"""


def screen(rows: int, above: int, pieces: int = 4) -> list[str]:
  """What stands there after so many lines above, and pieces of the text."""
  parent, child = pty.openpty()
  termios.tcsetwinsize(child, (rows, 30))
  arguments = [sys.executable, "-c", SCRIPT, str(above), str(pieces)]
  process = subprocess.Popen(arguments, stdout=child, stderr=child, stdin=child)
  os.close(child)
  shown = pyte.Screen(30, rows)
  stream = pyte.ByteStream(shown)
  try:
    while data := os.read(parent, 65536):
      stream.feed(data)
  except OSError:  # the other end is closed
    pass
  os.close(parent)
  assert process.wait() == 0
  return [line.rstrip() for line in shown.display]


@pytest.mark.parametrize("above", [0, 3, 20])  # 20: at the foot of the screen, which scrolls
def test_a_bar_overwrites_no_text_and_leaves_nothing(above):
  lines = screen(8, above)
  while not lines[-1]:
    lines.pop()
  assert lines[-2:] == ["import numpy as np, which is", "a line and more"]
  assert all(line == f"above {n}" for line, n in zip(lines[:-2][::-1], range(above - 1, -1, -1), strict=False))


def test_the_bar_is_on_the_line_below_the_text():
  lines = screen(8, 3, pieces=1)
  assert lines[3] == "import nu" and lines[4].startswith("private:")
