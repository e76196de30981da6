"""A model → a folder of Hugging Face form, whole or not at all: a GPT-2, or one that `interop.read` alone opens.

config.json, model.safetensors   what `read` reads
tokenizer.json | tokenizer.model, tokenizer_config.json
README.md                        the model card
export.json                      which files these are, and what they were made of
"""

from collections.abc import Mapping
import json
import os
import pathlib
import shutil

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import files
from entropy_attn.errors import UserError, check_choice, is_disk_full, shorten
from entropy_attn.interop import fold, keys, read, settings, tensors

FORMS = ("auto", "gpt2", "entropy_attn")
_MADE = "export.json"


def form_of(variables: Mapping, config: ConfigDict, wanted: str = "auto") -> str:
  """The form that a model is written in, "gpt2" or "entropy_attn".

  Args:
    wanted: one of FORMS. auto: gpt2 where the model is one.

  Raises:
    UserError: for gpt2 where the model is none: it names the field that says so.
  """
  check_choice("format", wanted, FORMS)
  beyond = fold.obstacle(variables, config.model)
  if wanted == "gpt2" and beyond:
    raise UserError(f"format=gpt2: the model is no GPT-2 ({beyond}): leave it out, and entropy_attn.load opens it")
  return wanted if wanted != "auto" else "entropy_attn" if beyond else "gpt2"


def check_free(target: pathlib.Path, what: str) -> None:
  """Raises UserError unless a folder can be written: it is not there, empty, or an earlier export and nothing else."""
  if target.is_symlink() or (target.exists() and not target.is_dir()):
    raise UserError(f"{what}={target} is no folder: name another")
  if target.is_dir():
    there = {path.name for path in target.iterdir()}
    try:
      made = (files.read_json(target / _MADE) or {}).get("files", [])
    except (OSError, ValueError):
      made = []
    others = sorted(there - {*made, _MADE})
    if there and (others or not made):
      raise UserError(f"{what}={target} holds something else ({shorten(others)}): name a new folder, or an empty one")
  above = next(path for path in target.absolute().parents if path.exists())
  if not above.is_dir() or not os.access(above, os.W_OK):
    raise UserError(f"{what}={target} cannot be made: {above} cannot be written: name another folder")


def write(
  target: pathlib.Path,
  variables: Mapping,
  config: ConfigDict,
  *,
  form: str,
  card: str,
  made_of: Mapping,
  tokenizer=None,
  what: str = "--to",
) -> list[str]:
  """Writes a folder; returns the names of its files.

  Args:
    form: of `form_of`.
    card: the content of README.md.
    made_of: what the files were made of, plain JSON.
    tokenizer: a `data.tokenizer.Tokenizer`; None: none is written.
    what: names the folder in messages.

  Raises:
    UserError: where the folder holds something else, or cannot be written.
  """
  check_free(target, what)
  unfinished, old = files.unfinished(target), target.with_name(f".{target.name}.old")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    for rest in (unfinished, old):
      shutil.rmtree(rest, ignore_errors=True)
    unfinished.mkdir()
    _fill(unfinished, variables, config, form, tokenizer)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    names = sorted(path.name for path in unfinished.iterdir())
    files.write_json(unfinished / _MADE, {"files": names, **made_of})
    for path in unfinished.iterdir():
      files.sync(path)
    if target.exists():
      os.replace(target, old)
    os.replace(unfinished, target)
    return [*names, _MADE]
  except OSError as error:
    mend = "free some space" if is_disk_full(error) else "name another folder"
    raise UserError(f"{what}={target} cannot be written: {error.strerror or error}: {mend}") from error
  finally:
    if old.exists() and not target.exists():
      os.replace(old, target)
    for rest in (unfinished, old):
      shutil.rmtree(rest, ignore_errors=True)


def _fill(folder: pathlib.Path, variables: Mapping, config: ConfigDict, form: str, tokenizer) -> None:
  """Writes weights, settings and tokenizer."""
  end_id = tokenizer.end_id if tokenizer else None
  if form == "gpt2":
    params, m = fold.to_gpt2(variables, config.model)
    content, arrays = settings.to_gpt2(m, end_id=end_id), dict(keys.to_tensors(params, m))
  else:
    groups = {group: config[group].to_dict() for group in read.GROUPS}
    content = {"model_type": read.OWN, "architecture": config_lib.architecture_name(config), **groups}
    arrays = read.flat(variables)
  tensors.write(folder / tensors.ONE, arrays)
  (folder / read.CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
  (folder / tensors.ONE).chmod((folder / read.CONFIG).stat().st_mode)  # the library's own is for its owner alone
  if tokenizer is None:
    return
  name, bytes_of = tokenizer.file
  (folder / name).write_bytes(bytes_of)
  if name == read.TOKENIZER[0]:  # what `transformers` opens it as
    end = tokenizer.decode([end_id]) if end_id is not None else None
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.model.max_positions}
    about |= {"bos_token": end, "eos_token": end} if end else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
