"""Eight CPU devices for the sharding tests, and quick compilation, set before jax starts; a small corpus."""

import os
import pathlib
import shutil
import sysconfig

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """Overrides that name a small folder of real text, and where its dataset is built."""
  folder = tmp_path_factory.mktemp("corpus")
  for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))[:30]:
    shutil.copy(path, folder)
  return {"data.path": folder, "data.data_dir": tmp_path_factory.mktemp("built")}
