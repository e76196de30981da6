"""What a run's figures depend on of its text: the same for the same tokens wherever they are, and changes are named."""

import json
import os

import pytest

from entropy_attn.data import identity, pipeline, tokenizer
from entropy_attn.errors import UserError
from tests.data.small_configs import make_config


def _prepare(tmp_path, path, opened=None, **fields):
  config = make_config(tmp_path / "built", data__name="text_files", data__path=str(path), **fields)
  return pipeline.prepare(config, opened)


def test_is_the_same_wherever_and_whenever_the_text_is(tmp_path, small):
  first = _prepare(tmp_path, small)
  moved = small.rename(tmp_path / "moved")
  for path in moved.iterdir():
    os.utime(path, (1, 1))
  again = _prepare(tmp_path / "other", moved)
  assert again.identity == first.identity == json.loads(json.dumps(first.identity))
  assert first.identity["tokenizer"] == first.tokenizer.fingerprint
  assert first.identity["train"]["sequences"] == len(first.train)
  assert set(first.identity["train"]["files"]) | set(first.identity["valid"]["files"]) == {f"{i}.txt" for i in range(8)}
  reopened = _prepare(tmp_path / "other", moved)
  assert (reopened.identity, reopened.description) == (again.identity, again.description)


def test_the_digest_is_of_the_tokens(tmp_path, small):
  first = _prepare(tmp_path, small)
  path = small / next(iter(first.identity["train"]["files"]))
  path.write_text(path.read_text().replace("a", "e", 1))
  other = _prepare(tmp_path, small, first.tokenizer)
  assert other.identity["train"]["digest"] != first.identity["train"]["digest"]
  assert other.identity["valid"] == first.identity["valid"]
  lines = identity.differences(first.identity, other.identity)
  assert lines[0] == f"train: 1 file changed ({path.name})"


def test_files_are_named_that_came_and_went(tmp_path, small):
  first = _prepare(tmp_path, small)
  for i in range(4):
    (small / f"new{i}.txt").write_text(f"import new{i}\n" * 40)
  gone, stays = list(first.identity["train"]["files"])[:2]
  (small / gone).unlink()
  (small / stays).rename(small / f"{stays}.renamed")  # is no change
  other = _prepare(tmp_path, small, first.tokenizer, data__valid_fraction=0.01)
  lines = identity.differences(first.identity, other.identity)
  assert any(line.startswith("train: ") and "files added (new" in line and ", …)" in line for line in lines)
  assert f"train: 1 file removed ({gone})" in lines
  assert not any("renamed" in line for line in lines)
  assert any("→" in line and line.endswith(" sequences") for line in lines)


def test_names_alone_do_not_count(tmp_path, small):
  first = _prepare(tmp_path, small).identity
  other = json.loads(json.dumps(first))
  for split in ("train", "valid"):
    other[split]["files"] = {f"x/{name}": what for name, what in first[split]["files"].items()}
  assert identity.differences(first, other) == []


def test_another_tokenizer_length_or_packing_is_named(tmp_path, small):
  first = _prepare(tmp_path, small).identity
  assert "tokenizer: another one" in identity.differences(
    first, _prepare(tmp_path, small, model__vocab_size=301).identity
  )
  lines = identity.differences(
    first, _prepare(tmp_path, small, model__context_length=16, data__packing="concat").identity
  )
  assert lines[:2] == ["context length: 32 → 16", "packing: per_file → concat"]


def test_overlap_counts_validation_files_that_were_trained_on(tmp_path, small):
  first = _prepare(tmp_path, small).identity
  assert identity.overlap(first, first) == 0
  swapped = {**first, "valid": first["train"]}
  assert identity.overlap(first, swapped) == len(first["train"]["files"])
  assert identity.overlap({}, first) == identity.overlap(first, {}) == 0
  sizes = {"train": {"files": {"a": "12 bytes"}}, "valid": {"files": {"b": "12 bytes"}}}
  assert identity.overlap(sizes, sizes) == 0  # a size says nothing


def test_many_files_are_counted_and_not_listed():
  files = {f"{i}": "0" * 16 for i in range(20_001)}
  counts = {"sequences": 1, "tokens": 2, "documents": 3, "too short": 4}
  assert identity.of_split(counts, "d", files)["files"] == {}
  assert identity.differences({}, {}) == []


def test_the_tokenizer_of_a_run_takes_the_place_of_the_configs(tmp_path, small, texts):
  tokenizer.train(texts, 300, tmp_path / "other.json")
  other = tokenizer.open_tokenizer(str(tmp_path / "other.json"))
  own, given = _prepare(tmp_path, small), _prepare(tmp_path, small, other)
  assert given.tokenizer is other
  assert given.identity["tokenizer"] == other.fingerprint != own.identity["tokenizer"]
  assert given.token_bytes is other.token_bytes
  named = _prepare(tmp_path, small, other, data__tokenizer="none.json")  # which is not asked for
  assert named.identity == given.identity
  with pytest.raises(UserError, match="the run's tokenizer has 300 entries but model.vocab_size=301"):
    _prepare(tmp_path, small, other, model__vocab_size=301)
