"""Eight CPU devices for the sharding tests, and quick compilation, set before jax starts; a small corpus."""

import atexit
import ctypes
import gc
import importlib.util
import os
import pathlib
import shutil
import signal
import sys
import sysconfig
import tempfile

from packaging.requirements import Requirement
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":  # a chip's kernels are tested as they are used
  _FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

# What one test compiled, others load: in this process, in those that it starts, and in the workers beside it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _COMPILED = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
  os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": _COMPILED,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Read while another process writes it, it is compiled again, which is no news.
    "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry",
  }

# A shell's background jobs, and nohup's, ignore them, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


_MUCH, _MORE = 1.8e9, 0.4e9  # bytes
_kept = 0.0  # bytes that forgetting did not free: the engine's, and libraries


# Minutes each: begun first, none is left for one worker to end with while the other has nothing to do.
_LONG = ("test_train.py", "test_engine.py", "test_commands.py", "test_train_step.py", "test_transforms.py")


def pytest_collection_modifyitems(config, items):
  _leave_out_the_engine(config, items)
  items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


def _leave_out_the_engine(config, items) -> None:
  """Deselects the tests that need the two-party engine where there is no wheel of it; where there is one, none is."""
  needing = [item for item in items if item.get_closest_marker("engine")]
  if not needing or importlib.util.find_spec("spu") is not None:
    return
  lines = (pathlib.Path(__file__).parents[1] / "requirements-private.txt").read_text().splitlines()
  (engine,) = (Requirement(line.partition("#")[0]) for line in lines if line.startswith("spu"))
  if engine.marker.evaluate():
    raise pytest.UsageError(
      f"{len(needing)} tests need the two-party engine, which this Python can have: make setup-private"
    )
  config.hook.pytest_deselected(items=needing)
  items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="module", autouse=True)
def forgotten():
  """Frees what a module compiled: a worker would keep every program of all its modules."""
  yield
  _forget()


@pytest.fixture(autouse=True)
def forgotten_in_between():
  """The same within a module that compiles very much."""
  yield
  if _resident_bytes() > max(_MUCH, _kept + _MORE):
    _forget()


def _forget() -> None:
  global _kept
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()
  gc.collect()
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: gives freed memory back to the system
  if trim is not None:
    trim(0)
  _kept = _resident_bytes()


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
