"""What a study starts a training through: it becomes that command, on a part of the CPUs and bound to the study.

    python child.py PARENT CPUS COMMAND …

PARENT is the study's process id; CPUS a list such as 0,1, or nothing. It imports nothing of ours: it is to be quick.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main() -> None:
  """Becomes the command."""
  parent, cpus, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
  if cpus and hasattr(os, "sched_setaffinity"):
    # XLA's pool has a thread for each CPU that the process may use (seen: tf_XLAEigen threads, 2 without, 1 with one
    # CPU), so that this alone divides the threads; XLA has no flag for their number.
    with contextlib.suppress(OSError):  # a CPU that was taken away meanwhile
      os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
  # A study that is killed outright leaves no training behind: it is asked to save. Other systems than Linux lack this.
  if sys.platform == "linux":
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != parent:  # it died before
    sys.exit(1)
  os.execv(command[0], command)


if __name__ == "__main__":
  main()
