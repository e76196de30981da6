"""Eight CPU devices for the sharding tests, and quick compilation, set before jax starts; a small corpus."""

import ctypes
import gc
import os
import pathlib
import shutil
import signal
import sys
import sysconfig

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

# A shell's background jobs, and nohup's, ignore them, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


_MUCH = 1.2e9  # bytes


@pytest.fixture(scope="module", autouse=True)
def forgotten():
  """Frees what a module compiled: a worker would keep every program of all its modules."""
  yield
  _forget()


@pytest.fixture(autouse=True)
def forgotten_in_between():
  """The same within a module that compiles very much."""
  yield
  if _resident_bytes() > _MUCH:
    _forget()


def _forget() -> None:
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()
  gc.collect()
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: gives freed memory back to the system
  if trim is not None:
    trim(0)


def _resident_bytes() -> int:
  """Of this process, where the system tells (Linux); else 0."""
  statm = pathlib.Path("/proc/self/statm")
  return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """Overrides that name a small folder of real text, and where its dataset is built."""
  folder = tmp_path_factory.mktemp("corpus")
  for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))[:30]:
    shutil.copy(path, folder)
  return {"data.path": folder, "data.data_dir": tmp_path_factory.mktemp("built")}
