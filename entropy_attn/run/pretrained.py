"""Models as they were trained: a run's folder → config, variables and tokenizer, to compute with."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import paths, sharding
from entropy_attn.data import pipeline
from entropy_attn.data.tokenizer import Tokenizer
from entropy_attn.errors import UserError
from entropy_attn.progress import say
from entropy_attn.run import checkpoint, folder, text
from entropy_attn.train_step import abstract_state, init_state


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model with its weights.

  Attributes:
    config: that of the run, or as given.
    variables: what `model.GPT(config).apply` takes, on the host.
    folder: of the run; None for a model that was not trained.
    step: of the checkpoint; 0 for a model that was not trained.
  """

  config: ConfigDict
  variables: Mapping
  folder: pathlib.Path | None
  step: int

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """To encode prompts and decode tokens.

    Raises:
      UserError: where neither the run's folder nor this machine has it.
    """
    kept = text.known_tokenizer(self.folder) if self.folder else None
    return kept or pipeline.open_tokenizer(self.config)

  @property
  def description(self) -> str:
    """One line for the user."""
    name = config_lib.architecture_name(self.config)
    where = f"step {self.step} of {self.folder}" if self.folder else "untrained, from the config's seed"
    return f"{name}, {where}"

  def sequences(self, count: int, length: int, *, split: str = "valid") -> np.ndarray:
    """Token ids [count, length] of the run's own text: from the sample in its folder, or from the text itself.

    Fewer where the split has fewer. Of an untrained model random ones: no text tells anything of it.

    Raises:
      UserError: where the sample holds too few, and the text is not on this machine.
    """
    if self.folder is None:
      rng = np.random.default_rng(self.config.train.seed)
      return rng.integers(0, self.config.model.vocab_size, (count, length), np.int32)
    kept_SxT = text.read_sample(self.folder, split)
    if kept_SxT is None or len(kept_SxT) == text.SAMPLED < count:
      kept_SxT = self._read(split, count, keep=kept_SxT is None)
    return kept_SxT[:count, :length]

  def _read(self, split: str, count: int, *, keep: bool) -> np.ndarray:
    """The first sequences [count, T] of the run's text as it is now; says how it differs from what it was."""
    try:
      dataset = pipeline.prepare(self.config, text.known_tokenizer(self.folder))
    except UserError as error:
      raise UserError(
        f"fixed point is checked on {count} sequences of the run's text, and {self.folder} does not hold them: {error}"
      ) from error
    differs = text.compare(self.folder, dataset)
    if differs:
      say(f"note: the text is not what the run was trained on ({'; '.join(differs)})")
    elif keep:
      with contextlib.suppress(OSError):  # a folder that is read-only serves as well
        text.write_sample(self.folder, dataset)
    source = getattr(dataset, split)
    return np.asarray(source.batch(range(min(count, len(source))))["inputs"], np.int32)


def load(source: str | pathlib.Path, step: int | None = None) -> Pretrained:
  """The model of a run's folder, on one device.

  Args:
    source: the folder.
    step: of the checkpoint; None: the newest that can be read.

  Raises:
    UserError: if there is none that can be read.
  """
  workdir = paths.expand(source, "the run's folder")
  config = folder.read_config(workdir)
  config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  variables, found = checkpoint.restore_variables(workdir, abstract_state(config, mesh), step)
  return Pretrained(config, jax.device_get(variables), workdir, found)


def untrained(config: ConfigDict) -> Pretrained:
  """A config's model as it is before training."""
  state = jax.jit(functools.partial(init_state, config))()
  return Pretrained(config, jax.device_get(state.variables), None, 0)
