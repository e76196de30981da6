"""What is run privately: a run folder's checkpoint, or a config's freshly initialised model; and text to try it on."""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib

from absl import flags
import jax
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import checkpoint, cli, sharding
from entropy_attn import config as config_lib
from entropy_attn.data import pipeline
from entropy_attn.errors import UserError
from entropy_attn.optimizer import make_optimizer
from entropy_attn.train_step import init_state


@dataclasses.dataclass(frozen=True)
class Source:
  """A model in the clear.

  Attributes:
    config: of the run, or as given.
    folder: of the run; None for a model that was not trained.
    step: of the checkpoint; 0 for a model that was not trained.
  """

  config: ConfigDict
  variables: Mapping
  folder: pathlib.Path | None
  step: int

  @property
  def description(self) -> str:
    """One line for the user."""
    name = config_lib.architecture_name(self.config)
    where = f"step {self.step} of {self.folder}" if self.folder else "untrained, from the config's seed"
    return f"{name}, {where}"

  def sequences(self, count: int, length: int, *, split: str = "valid") -> np.ndarray:
    """Token ids [count, length] of the run's own text, or random ones where its text is not on this machine.

    Of an untrained model always random ones: no text tells anything of it.
    """
    if self.folder is not None:
      try:
        source = getattr(pipeline.prepare(self.config), split)
        rows = source.batch(range(min(count, len(source))))["inputs"]
        return np.asarray(rows[:, :length], np.int32)
      except UserError as error:
        print(f"note: random tokens in place of the run's text ({error})")
    rng = np.random.default_rng(self.config.train.seed)
    return rng.integers(0, self.config.model.vocab_size, (count, length), np.int32)


def define_flags():
  """Defines --checkpoint, --step and --config; returns what `load` takes."""
  return (
    flags.DEFINE_string("checkpoint", None, "A run's folder: its newest checkpoint."),
    flags.DEFINE_integer("step", None, "With --checkpoint: that of this step."),
    cli.define_config(),
  )


def load(holders) -> Source:
  """The model that the flags name.

  Raises:
    UserError: without --checkpoint or --config, or for one that cannot be read.
  """
  folder, step, config = holders
  if folder.value:
    return from_run(pathlib.Path(folder.value), step.value)
  if step.value is not None:
    raise UserError("--step needs --checkpoint")
  try:
    return untrained(cli.load_config(config))
  except UserError as error:
    if config.value is not None:
      raise
    raise UserError("name a model: --checkpoint=RUN, or --config=FILE for an untrained one") from error


def from_run(folder: pathlib.Path, step: int | None = None) -> Source:
  """The checkpoint of a run's folder.

  Raises:
    UserError: if there is none that can be read.
  """
  config = checkpoint.read_config(folder)
  if config is None:
    raise UserError(f"{folder} holds no run (no config.json): train first, or correct --checkpoint")
  config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  abstract = jax.eval_shape(functools.partial(init_state, config, make_optimizer(config)))
  shapes = sharding.with_shardings(abstract, sharding.state_shardings(abstract, mesh))
  state, found = checkpoint.restore_for_evaluation(folder, shapes, step)
  return Source(config, jax.device_get(state.variables), folder, found)


def untrained(config: ConfigDict) -> Source:
  """A config's model as it is before training."""
  state = jax.jit(functools.partial(init_state, config, make_optimizer(config)))()
  return Source(config, jax.device_get(state.variables), None, 0)
