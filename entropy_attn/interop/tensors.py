"""Tensors in safetensors files, one or several with an index; every array as float32."""

from collections.abc import Mapping
import json
import pathlib

import ml_dtypes  # noqa: F401  NumPy's bfloat16, which the library reads such files with
import numpy as np
import safetensors
import safetensors.numpy

from entropy_attn.errors import UserError, one_line

ONE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.ckpt")
_FLOATS = ("F32", "F16", "BF16", "F64")


class Tensors:
  """The tensors of a folder by name; each is read when it is asked for.

  Args:
    folder: of model.safetensors, or of several files with model.safetensors.index.json.

  Raises:
    UserError: where there is neither, or a file is missing or damaged.
  """

  def __init__(self, folder: pathlib.Path):
    self._files, self._shapes = {}, {}
    for path, promised in _paths(folder).items():
      file = _open(path)
      held = set(file.keys())
      missing = sorted(set(promised or held) - held)
      if missing:
        raise UserError(f"{path} does not hold {_listed(missing)}, as {_INDEX} says: fetch both again")
      for name in held if promised is None else promised:
        piece = file.get_slice(name)
        self._files[name], self._shapes[name] = (path, file, piece.get_dtype()), tuple(piece.get_shape())

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return self._shapes

  def __call__(self, name: str) -> np.ndarray:
    """One tensor, float32.

    Raises:
      UserError: for one of another kind than floating point, or that cannot be read.
    """
    path, file, kind = self._files[name]
    if kind not in _FLOATS:
      raise UserError(f"{path}: {name} is of {kind}, not one of {', '.join(_FLOATS)}: name a folder of whole weights")
    try:
      return np.asarray(file.get_tensor(name)).astype(np.float32, copy=False)
    except (safetensors.SafetensorError, OSError) as error:
      raise UserError(f"{path}: {name} cannot be read ({one_line(error)}): fetch the file again") from error


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes tensors to one file, in the form that `transformers` opens."""
  whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
  safetensors.numpy.save_file(whole, path, metadata={"format": "pt"})


def _paths(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  """The files to read, and the tensors that the index says are in each; None: all there are."""
  if (folder / ONE).is_file():
    return {folder / ONE: None}
  index = folder / _INDEX
  if not index.is_file():
    others = [name for name in _OTHERS if (folder / name).exists()]
    if others:
      raise UserError(
        f"{folder} holds its weights as {others[0]}, and not as {ONE}: convert them once, where PyTorch is: "
        f'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained("{folder}")'
      )
    raise UserError(f"{folder} holds no weights (neither {ONE} nor {_INDEX}): fetch them, or correct the folder's name")
  try:
    where = json.loads(index.read_bytes())["weight_map"]
    files: dict[str, list[str]] = {}
    for name, file in where.items():
      files.setdefault(file, []).append(name)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{index} cannot be read ({one_line(error)}): fetch it again") from error
  for file in files:
    if pathlib.PurePath(file).name != file or not (folder / file).is_file():
      raise UserError(f"{index} names {file}, which is not in its folder: fetch it")
  return {folder / file: names for file, names in files.items()}


def _open(path: pathlib.Path):
  try:
    return safetensors.safe_open(path, framework="np")
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is damaged or cut short ({one_line(error)}): fetch it again") from error


def _listed(names) -> str:
  names = list(names)
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
