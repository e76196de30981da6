"""How tests wait: for an event, with an end so late that no busy machine reaches it."""

import time

PATIENCE = 900.0  # seconds


def until(condition, process=None):
  """Waits until condition() is true, and returns it; a process that it is awaited of must not end before."""
  end = time.monotonic() + PATIENCE
  while not (found := condition()):
    assert process is None or process.poll() is None, "the process ended before"
    assert time.monotonic() < end, "it never came"
    time.sleep(0.02)
  return found
