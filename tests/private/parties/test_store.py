"""Material that waits on disk: what was put in comes out, once, for whom and what it was made."""

import stat

import numpy as np
import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.parties.material import Mask, Material
from entropy_attn.private.parties.store import Store

NAME, BOUND = "0123456789abcdef" * 2, {"model": "m", "peer": "p"}


def material(seed=0):
  rng = np.random.default_rng(seed)
  wide = Mask((rng.integers(0, 2**63, (3, 4), np.uint64),), rng.integers(0, 2**63, (3, 5), np.uint64))
  narrow = Mask((), rng.integers(0, 2**31, (2, 2), np.uint32))
  return Material(3, {"x 0.qkv": wide, "0.exponential 1": narrow})


def assert_same(one, other):
  assert one.rows == other.rows and one.masks.keys() == other.masks.keys()
  for name, mask in one.masks.items():
    for a, b in zip(
      (*mask.operands, mask.product), (*other.masks[name].operands, other.masks[name].product), strict=True
    ):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)


def test_what_is_kept_is_taken_once(tmp_path):
  folder = tmp_path / "material"
  size = Store(folder).add(NAME, 0, material(), BOUND)
  (part,) = Store(folder).waiting()
  assert (part.of, part.index, part.rows, part.bound, part.nbytes) == (NAME, 0, 3, BOUND, size)
  assert_same(Store(folder).take(NAME, 0, BOUND), material())
  again = Store(folder)
  assert again.take(NAME, 0, BOUND) is None and again.waiting() == [] and again.knows(NAME)
  again.add(NAME, 0, material(), BOUND)  # nor where it is put back
  assert again.take(NAME, 0, BOUND) is None


def test_it_is_for_one_model_and_one_peer_alone(tmp_path):
  store = Store(tmp_path)
  store.add(NAME, 0, material(), BOUND)
  for other in ({"model": "m", "peer": "q"}, {"model": "n", "peer": "p"}, {"model": "m"}):
    assert store.take(NAME, 0, other) is None
  assert store.take(NAME, 1, BOUND) is None and store.take("../" + NAME, 0, BOUND) is None
  assert_same(store.take(NAME, 0, BOUND), material())


def test_nobody_else_reads_it(tmp_path):
  folder = tmp_path / "material"
  store = Store(folder)
  store.add(NAME, 0, material(), BOUND)
  content = (folder / f"{NAME}.0.material").read_bytes()
  for mask in material().masks.values():
    assert mask.product.tobytes() not in content
  modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
  assert set(modes.values()) == {0o600, 0o700} and modes["key"] == 0o600
  (folder / "key").chmod(0o644)
  with pytest.raises(UserError, match="can be read by others"):
    Store(folder)


@pytest.mark.parametrize("place", [0, 6, 40, -1])
def test_damage_is_told_and_nothing_damaged_is_used(tmp_path, place):
  store = Store(tmp_path)
  store.add(NAME, 0, material(), BOUND)
  path = tmp_path / f"{NAME}.0.material"
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(content)
  try:
    assert store.take(NAME, 0, BOUND) is None  # what is said openly of it was changed
  except UserError as error:
    assert "is damaged" in str(error)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot hold material"):
    Store(tmp_path / "file" / "material")


def test_what_is_left_of_a_set_can_be_dropped(tmp_path):
  store = Store(tmp_path)
  for i in range(3):
    store.add(NAME, i, material(i), BOUND)
  assert store.nbytes() == sum(part.nbytes for part in store.waiting()) > 0
  assert_same(store.take(NAME, 1, BOUND), material(1))
  store.drop(NAME)
  assert store.waiting() == [] and store.take(NAME, 2, BOUND) is None
