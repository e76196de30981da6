"""How many bytes of text each token stands for, where a tokenizer's tokens are pieces of the text."""

import re

import numpy as np
from tokenizers import pre_tokenizers

_SPACE = "\u2581"  # ▁, a space in SentencePiece and Metaspace pieces
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What may stand before the model and lets the pieces remain the text's own. The last four are SentencePiece's way with
# spaces and its normalisation: the bytes are then those of the normalised text.
_BYTE_LEVEL_NORMALIZERS = {"NFC", "ByteLevel"}
_SPACED_NORMALIZERS = {"NFC", "NFKC", "Precompiled", "Prepend", "Replace"}
_DROPPING = {"Whitespace", "WhitespaceSplit", "CharDelimiterSplit", "BertPreTokenizer"}


def of_json(spec: dict, size: int, end_id: int | None) -> np.ndarray | None:
  """Of a `tokenizers` JSON: int32 [size]; None where its tokens are not pieces of the text, as with WordPiece.

  A piece of byte-level BPE has one character for each byte. In a piece with ▁ that is one space, `<0x0A>` is one byte,
  and the rest is UTF-8. Special tokens, the unknown one and the end of text stand for nothing. A space that the
  tokenizer puts before the text counts like one of the text.
  """
  model = spec["model"]
  entries = model.get("vocab")
  pieces = dict(entries) if isinstance(entries, dict) else {piece: i for i, (piece, _) in enumerate(entries or ())}
  bytes_of = _rule(spec, model, pieces)
  if bytes_of is None:
    return None
  counts = np.zeros(size, np.int32)
  for piece, index in pieces.items():
    counts[index] = bytes_of(piece)
  for token in spec.get("added_tokens") or ():
    counts[token["id"]] = 0 if token["special"] else len(token["content"].encode())
  unknown = model.get("unk_id") if model.get("unk_id") is not None else pieces.get(model.get("unk_token"))
  for index in (unknown, end_id):
    if index is not None:
      counts[index] = 0
  return counts


def of_sentencepiece(model, end_id: int | None) -> np.ndarray:
  """Of a SentencePiece model: int32 [pieces]."""
  counts = np.zeros(model.GetPieceSize(), np.int32)
  for i in range(len(counts)):
    if model.IsByte(i):
      counts[i] = 1
    elif i != end_id and not (model.IsControl(i) or model.IsUnknown(i) or model.IsUnused(i)):
      counts[i] = _length(model.IdToPiece(i))
  return counts


def _rule(spec: dict, model: dict, pieces: dict[str, int]):
  """The function from a piece to its bytes, or None."""
  kind = model.get("type", "BPE")
  steps = _flat(spec.get("pre_tokenizer"), "pretokenizers")
  names = {step["type"] for step in steps}
  normalizers = {step["type"] for step in _flat(spec.get("normalizer"), "normalizers")}
  removes = any(step.get("behavior") == "Removed" for step in steps)
  affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
  if kind not in ("BPE", "Unigram") or removes or affixes or names & _DROPPING:
    return None
  if "ByteLevel" in names | normalizers:
    whole = set(pre_tokenizers.ByteLevel.alphabet()) <= pieces.keys()  # else bytes are lost
    return len if whole and normalizers <= _BYTE_LEVEL_NORMALIZERS else None
  if normalizers <= _SPACED_NORMALIZERS and any(_SPACE in piece for piece in pieces):
    return (lambda piece: 1 if _BYTE.fullmatch(piece) else _length(piece)) if model.get("byte_fallback") else _length
  return None


def _flat(step: dict | None, inner: str) -> list[dict]:
  if step is None:
    return []
  return [part for one in step[inner] for part in _flat(one, inner)] if step["type"] == "Sequence" else [step]


def _length(piece: str) -> int:
  return len(piece.replace(_SPACE, " ").encode())
