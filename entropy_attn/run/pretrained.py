"""Models with their weights: a run, Hugging Face files or a name on the Hub → config, variables and tokenizer."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from entropy_attn import config as config_lib
from entropy_attn import sharding
from entropy_attn.data import pipeline, text_files
from entropy_attn.data.tokenizer import Tokenizer, open_tokenizer
from entropy_attn.errors import UserError
from entropy_attn.interop import read
from entropy_attn.progress import say
from entropy_attn.run import checkpoint, folder, text
from entropy_attn.run import source as source_lib
from entropy_attn.train_step import abstract_state, init_state


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model with its weights.

  Attributes:
    config: that of the run, or as given.
    variables: what `model.GPT(config).apply` takes, on the host.
    folder: of the run; None for a model that no run here made.
    step: of the checkpoint; 0 without a run.
    files: the folder of Hugging Face files that it was read from; None for any other.
  """

  config: ConfigDict
  variables: Mapping
  folder: pathlib.Path | None
  step: int
  files: pathlib.Path | None = None

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """To encode prompts and decode tokens.

    Raises:
      UserError: where neither the model's folder nor this machine has it, or it has ids that the model does not know.
    """
    if self.files is not None:
      return self._tokenizer_beside()
    kept = text.known_tokenizer(self.folder) if self.folder else None
    return kept or pipeline.open_tokenizer(self.config)

  @property
  def description(self) -> str:
    """One line for the user."""
    name = config_lib.architecture_name(self.config)
    if self.files is not None:
      return f"{name}, {self.files}"
    where = f"step {self.step} of {self.folder}" if self.folder else "untrained, from the config's seed"
    return f"{name}, {where}"

  def _tokenizer_beside(self) -> Tokenizer:
    """The tokenizer among the files that the model was read from."""
    files, known = self.files, self.config.model.vocab_size
    if not any((files / name).is_file() for name in read.TOKENIZER[:3]):
      raise UserError(
        f"{files} holds no tokenizer (tokenizer.json, or vocab.json with merges.txt): put the model's own beside its "
        "weights"
      )
    tokenizer = open_tokenizer(str(files / "tokenizer.model" if (files / "tokenizer.model").is_file() else files))
    if tokenizer.vocab_size > known:
      raise UserError(f"{files}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, and the model {known} tokens")
    return tokenizer

  def sequences(self, count: int, length: int, *, split: str = "valid") -> np.ndarray:
    """Token ids [count, length] of the run's own text: from the sample in its folder, or from the text itself.

    Fewer where the split has fewer. A model that was read from files has no text of its own, and takes python_source.
    Of an untrained model random ones: no text tells anything of it.

    Raises:
      UserError: where the sample holds too few, and the text is not on this machine.
    """
    if self.files is not None:
      return self._of_some_text(count, length, split)
    if self.folder is None:
      rng = np.random.default_rng(self.config.train.seed)
      return rng.integers(0, self.config.model.vocab_size, (count, length), np.int32)
    kept_SxT = text.read_sample(self.folder, split)
    if kept_SxT is None or len(kept_SxT) == text.SAMPLED < count:
      kept_SxT = self._read(split, count, keep=kept_SxT is None)
    return kept_SxT[:count, :length]

  def _of_some_text(self, count: int, length: int, split: str) -> np.ndarray:
    """Sequences of the Python sources of this machine, one after the other."""
    ids: list[int] = []
    for document in text_files.python_source(self.config.data).documents(split):
      ids += itertools.chain(*self.tokenizer.encode_batch([document]))
      if len(ids) >= count * length:
        break
    count = min(count, len(ids) // length)
    return np.asarray(ids[: count * length], np.int32).reshape(count, length)

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


def load(source: str | os.PathLike, step: int | None = None, *, what: str = "SOURCE") -> Pretrained:
  """A model, on one device.

  Args:
    source: a run's folder, a folder of Hugging Face files, or a name on the Hub: gpt2, distilgpt2, owner/name. Of such
      files any GPT-2 is read (safetensors), and what `python -m entropy_attn.export` wrote.
    step: of a run's checkpoint; None: the newest that can be read.
    what: names the source in messages, such as "--checkpoint".

  Raises:
    UserError: if there is none that can be read, or it is of a model that is not computed here.
  """
  found = source_lib.find(source, what)
  workdir = found.folder
  if not found.is_run:
    if step is not None:
      raise UserError(f"step={step}: {workdir} holds one model and no checkpoints: leave it out")
    model = read.read(workdir)
    for note in model.notes:
      say(f"note: {note}")
    return Pretrained(model.config, model.variables, None, 0, workdir)
  config = folder.read_config(workdir)
  config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  variables, found = checkpoint.restore_variables(workdir, abstract_state(config, mesh), step)
  return Pretrained(config, jax.device_get(variables), workdir, found)


def untrained(config: ConfigDict) -> Pretrained:
  """A config's model as it is before training."""
  state = jax.jit(functools.partial(init_state, config))()
  return Pretrained(config, jax.device_get(state.variables), None, 0)
