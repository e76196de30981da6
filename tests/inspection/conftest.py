"""A run of a tiny model, with its tokenizer and a sample of its text, as training leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_attn import config as config_lib
from entropy_attn.data import pipeline
from entropy_attn.run import checkpoint, folder, pretrained, text
from entropy_attn.train_step import init_state

SIZE = {"num_layers": 2, "num_heads": 2, "d_model": 16, "context_length": 16, "max_positions": 16, "vocab_size": 300}


@pytest.fixture(scope="session")
def make_run(corpus):
  """(folder, architecture) → a run whose every parameter is moved away from where it began."""

  def make(workdir, architecture):
    config = config_lib.codeparrot("quick", architecture)
    config.model.update(SIZE)
    config.data.update(name="text_files", path=str(corpus["data.path"]), data_dir=str(corpus["data.data_dir"]))
    config_lib.validate(config)
    folder.record(workdir, config)
    text.record(workdir, pipeline.prepare(config), 0, accept=False)
    state = jax.jit(lambda: init_state(config))()
    rng = np.random.default_rng(1)
    move = lambda x: x + jnp.float32(0.2) * rng.normal(size=x.shape).astype(np.float32)
    state = state.replace(step=jnp.int32(3), params=jax.tree.map(move, state.params))
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(3, state, {"next": 3})
    checkpoints.close()
    return workdir

  return make


@pytest.fixture(scope="session")
def workdir(make_run, tmp_path_factory):
  """Of a run with LayerNorm and GELU."""
  return make_run(tmp_path_factory.mktemp("inspected"), "ln_gelu")


@pytest.fixture(scope="session")
def model(workdir):
  """That run's model, loaded."""
  return pretrained.load(workdir)
