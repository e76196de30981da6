"""Material that waits on disk: encrypted, bound to what it was made for, and used once.

A set is for one prompt and the tokens after it; each of these inferences has a part of its own, a file
`SET.PART.material`. Taking a part leaves an empty file of its name in `used`, on either side, before anything of it is
sent: what was used is refused by both. The key lies beside them, for this user alone: it keeps a copied or thrown away
disk from telling the masks, and nobody who can read as this user.
"""

from collections.abc import Mapping
import dataclasses
import io
import json
import os
import pathlib
import re
import secrets
import struct

from cryptography import exceptions
from cryptography.hazmat.primitives.ciphers import aead
import numpy as np

from entropy_attn import files
from entropy_attn.errors import UserError
from entropy_attn.private.parties.material import Mask, Material

_MAGIC = b"EAm1"
_NONCE = 12  # bytes, of AES-GCM
_KEY = 32
_NAME = re.compile(r"([0-9a-f]{32})\.([0-9]{1,6})\.material")


@dataclasses.dataclass(frozen=True)
class Part:
  """One part that waits.

  Attributes:
    of: its set, 32 hexadecimal digits.
    index: of the inference in it, from 0, the prompt.
    rows: how many new tokens it is for at most.
    bound: what it was made for.
    nbytes: on disk.
  """

  of: str
  index: int
  rows: int
  bound: Mapping[str, str]
  nbytes: int


class Store:
  """A folder of material, of one party.

  Args:
    folder: made if it does not exist, for this user alone.

  Raises:
    UserError: where it cannot be made, read or written.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._used = folder, folder / "used"
    try:
      for path in (folder, self._used):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
      self._cipher = aead.AESGCM(self._key())
    except OSError as error:
      raise UserError(f"{folder} cannot hold material: {error.strerror}") from error

  def _key(self) -> bytes:
    path = self._folder / "key"
    try:
      with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(_KEY))
    except FileExistsError:
      if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others, and so its material: delete {self._folder}") from None
    key = path.read_bytes()
    if len(key) != _KEY:
      raise UserError(f"{path} is no key: delete {self._folder}, and make material anew")
    return key

  def add(self, of: str, index: int, material: Material, bound: Mapping[str, str]) -> int:
    """Keeps one part; returns its bytes on disk.

    Raises:
      UserError: where it cannot be written.
    """
    plain = io.BytesIO()
    arrays = {}
    for i, mask in enumerate(material.masks.values()):
      arrays |= {f"{i}.{j}": array for j, array in enumerate((*mask.operands, mask.product))}
    np.savez(plain, **arrays)
    names = {name: len(mask.operands) for name, mask in material.masks.items()}
    said = {"set": of, "part": index, "rows": material.rows, "bound": dict(bound), "names": names}
    header = json.dumps(said).encode()
    nonce = secrets.token_bytes(_NONCE)
    sealed = self._cipher.encrypt(nonce, plain.getbuffer(), header)
    path = self._folder / f"{of}.{index}.material"
    temporary = files.unfinished(path)
    try:
      with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(_MAGIC + struct.pack("!I", len(header)) + header + nonce)
        file.write(sealed)
      return files.finish(path).stat().st_size
    except OSError as error:
      temporary.unlink(missing_ok=True)
      raise UserError(f"{path} cannot be written: {error.strerror}") from error

  def waiting(self) -> list[Part]:
    """All parts that wait, by set and index."""
    parts = []
    for path in self._folder.glob("*.material"):
      if _NAME.fullmatch(path.name):
        with path.open("rb") as file:
          header = _header(file, path)[0]
        parts.append(Part(header["set"], header["part"], header["rows"], header["bound"], path.stat().st_size))
    return sorted(parts, key=lambda part: (part.of, part.index))

  def nbytes(self) -> int:
    """On disk, of all parts that wait."""
    return sum(path.stat().st_size for path in self._folder.glob("*.material"))

  def take(self, of: str, index: int, bound: Mapping[str, str]) -> Material | None:
    """One part, which is used from now on; None where there is none, where it was used, or was made for something else.

    Raises:
      UserError: where it is damaged.
    """
    name = f"{of}.{index}.material"
    if not _NAME.fullmatch(name):
      return None
    path, used = self._folder / name, self._used / name
    try:
      with path.open("rb") as file:
        header, raw = _header(file, path)
        if header["bound"] != dict(bound):
          return None
        os.close(os.open(used, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # one process alone succeeds
        files.sync(self._used)  # before anything of it is sent
        nonce, sealed = file.read(_NONCE), file.read()
      path.unlink()
    except (FileNotFoundError, FileExistsError):
      return None
    try:
      arrays = np.load(io.BytesIO(self._cipher.decrypt(nonce, sealed, raw)))
    except exceptions.InvalidTag as error:
      raise UserError(f"{path} is damaged, or of another key: it is not used") from error
    masks = {}
    for i, (name, operands) in enumerate(header["names"].items()):
      masks[name] = Mask(tuple(arrays[f"{i}.{j}"] for j in range(operands)), arrays[f"{i}.{operands}"])
    return Material(header["rows"], masks)

  def knows(self, of: str) -> bool:
    """Whether something of a set waits or was used."""
    return any(next(folder.glob(f"{of}.*.material"), None) for folder in (self._folder, self._used))

  def drop(self, of: str) -> None:
    """Deletes what waits of a set."""
    for path in self._folder.glob(f"{of}.*.material"):
      path.unlink(missing_ok=True)


def _header(file, path: pathlib.Path) -> tuple[dict, bytes]:
  """What is said openly of a part, and the bytes that say it.

  Raises:
    UserError: where it is no part.
  """
  try:
    if file.read(len(_MAGIC)) != _MAGIC:
      raise ValueError("its first bytes are not of material")
    (size,) = struct.unpack("!I", file.read(4))
    raw = file.read(size)
    header = json.loads(raw)
    return header, raw
  except (ValueError, struct.error) as error:
    raise UserError(f"{path} is damaged: delete it") from error
