"""What a run's text was: its tokenizer, the identity of its dataset, and a sample of its sequences.

tokenizer.json or tokenizer.model  whatever text is read for the run's model later is read by it
dataset.json                       `data.identity` of the text it trains on, and what it was before a change
sample.npz                         the first sequences of each split, int32 [n, T]: what private inference is checked on
"""

import contextlib
import io
import pathlib
import zipfile

import numpy as np

from entropy_attn import files
from entropy_attn.data import identity, tokenizer
from entropy_attn.data.pipeline import Dataset
from entropy_attn.errors import UserError
from entropy_attn.progress import say

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_DATASET, _SAMPLE = "dataset.json", "sample.npz"
SAMPLED = 32  # sequences of each split


def record(workdir: pathlib.Path, dataset: Dataset, step: int, *, accept: bool) -> list[str]:
  """Writes what a run's text is, where the folder does not say it, and checks it where it does.

  Args:
    step: that the run goes on from.
    accept: go on with another text; dataset.json then says so.

  Returns:
    What differs from before, one line each: empty, but where it was accepted.

  Raises:
    UserError: where the text differs and that was not accepted.
  """
  before = read_identity(workdir)
  changed = identity.differences(before, dataset.identity) if before else []
  if changed and not accept:
    raise UserError(
      f"the text is not what the run in {workdir} was trained on until now ({'; '.join(changed)}): restore it, "
      "choose another --workdir, or go on with it by --accept_changed_text"
    )
  if before is None or changed:
    earlier = [*before.pop("earlier", []), before | {"until_step": step}] if before else []
    if dataset.tokenizer is not None:
      name, content = dataset.tokenizer.file
      files.write_bytes(workdir / name, content)
    write_sample(workdir, dataset)
    files.write_json(workdir / _DATASET, dataset.identity | {"earlier": earlier})
  return changed


def read_tokenizer(workdir: pathlib.Path) -> tokenizer.Tokenizer | None:
  """The tokenizer of a run; None where its folder holds none.

  Raises:
    UserError: for a damaged one.
  """
  for name in _TOKENIZERS:
    if (workdir / name).exists():
      return tokenizer.open_file(workdir / name)
  return None


def known_tokenizer(workdir: pathlib.Path) -> tokenizer.Tokenizer | None:
  """`read_tokenizer`; says it where a run of an earlier version does not hold what its text was."""
  if not (workdir / _DATASET).exists():
    say(f"note: {workdir} does not hold its tokenizer, nor what its text was: those of its config are taken")
  return read_tokenizer(workdir)


def read_identity(workdir: pathlib.Path) -> dict | None:
  """The identity of a run's dataset; None where its folder does not say it.

  Raises:
    UserError: for a damaged file.
  """
  path = workdir / _DATASET
  try:
    return files.read_json(path)
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({error}): delete it, and the text of today is taken as it") from error


def compare(workdir: pathlib.Path, dataset: Dataset) -> list[str]:
  """How a dataset differs from that of a run, one line each; with how much of its validation was trained on."""
  saved = read_identity(workdir)
  if saved is None:
    return []
  lines = identity.differences(saved, dataset.identity)
  trained_on = identity.overlap(saved, dataset.identity)
  return [*lines, f"{trained_on} validation files were trained on"] if trained_on else lines


def write_sample(workdir: pathlib.Path, dataset: Dataset) -> None:
  """Writes the first sequences of each split."""
  content = io.BytesIO()
  np.savez_compressed(content, train=_first(dataset.train), valid=_first(dataset.valid))
  files.write_bytes(workdir / _SAMPLE, content.getvalue())


def read_sample(workdir: pathlib.Path, split: str) -> np.ndarray | None:
  """The first sequences int32 [n, T] of a run's split: SAMPLED, or all there are; None where its folder has none."""
  with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(workdir / _SAMPLE) as sample:
    return sample[split]
  return None


def _first(sequences) -> np.ndarray:
  return np.asarray(sequences.batch(range(min(SAMPLED, len(sequences))))["inputs"], np.int32)
