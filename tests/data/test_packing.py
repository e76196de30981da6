"""Chunks reconstruct their documents."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from entropy_attn.data import packing

_DOCUMENTS = st.lists(st.lists(st.integers(1, 65_535), max_size=40), max_size=12)
_LENGTHS = st.integers(1, 9)


def _arrays(documents):
  return [np.asarray(tokens, np.uint16) for tokens in documents]


@given(_DOCUMENTS, _LENGTHS)
def test_per_file_keeps_each_document_but_its_tail(documents, length):
  blocks = list(packing.per_file(_arrays(documents), length))
  assert len(blocks) == len(documents)
  for block, tokens in zip(blocks, documents, strict=True):
    assert block.dtype == np.uint16
    assert block.shape == (len(tokens) // length, length)
    assert block.ravel().tolist() == tokens[: block.size]


@given(_DOCUMENTS, _LENGTHS)
def test_concat_keeps_the_joined_stream_but_its_tail(documents, length):
  stream = [token for tokens in documents for token in [*tokens, 0]]
  blocks = list(packing.concat(_arrays(documents), length, end_id=0))
  packed = np.concatenate([np.zeros((0, length), np.uint16), *blocks])
  assert packed.shape == (len(stream) // length, length)
  assert packed.ravel().tolist() == stream[: packed.size]


def test_example_predicts_the_next_token_except_at_the_end():
  example = packing.example(np.array([[5, 6, 7], [8, 9, 10]], np.uint16))
  assert example["inputs"].tolist() == [[5, 6, 7], [8, 9, 10]]
  assert example["targets"].tolist() == [[6, 7, 0], [9, 10, 0]]
  assert example["weights"].tolist() == [[1, 1, 0], [1, 1, 0]]
  assert {name: value.dtype.name for name, value in example.items()} == {
      "inputs": "int32", "targets": "int32", "weights": "float32",
  }  # fmt: skip
