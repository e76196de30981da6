"""Eight CPU devices for the sharding tests, and quick compilation; set before jax starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
