"""What an inspection found, as text for a terminal and as rows for the page."""

from collections.abc import Mapping, Sequence

import numpy as np

from entropy_attn.errors import shorten
from entropy_attn.report import tables

_WIDE = 16  # heads, from which on one decimal is shown


def text(found: Mapping) -> str:
  """All of it for a terminal."""
  parts = [tables.pairs(facts(found)), heads(found), tables.text(*profile(found))]
  private = found["private"]
  if private["ready"] is not None:
    parts.append(f"Private inference, by layer, on {private['sequences']} sequences of {private['length']} tokens\n"
                 + tables.text(*layers(private)))  # fmt: skip
  return "\n\n".join([*parts, f"private inference: {private['text']}"])


def facts(found: Mapping) -> list[tuple[str, str]]:
  """Names and what they stand for."""
  overlap = "" if found["windows"] == 1 or found["own_text"] else ", each half over the one before"
  of_bytes = "unknown: the tokenizer does not tell its tokens' bytes"
  if found["bits_per_byte"] is not None:
    of_bytes = f"{found['bits_per_byte']:.4f}  ({found['bytes']:,} bytes)"
  max_entropy = found["max_entropy"]
  observed = f"Max {np.nanmax(np.asarray(found['entropy_LxH'], float)):.2f}, the largest observed"
  return [
    ("model", found["model"]),
    ("text", f"{found['text']}: {found['tokens']:,} tokens, {count(found['windows'], 'window')} of "
             f"{found['width']}{overlap}"),
    ("perplexity", f"{found['perplexity']:.3f}  (loss {found['loss']:.4f}, {found['predicted']:,} tokens)"),
    ("bits per byte", of_bytes),
    ("head shares", f"{tables.percent(found['head_shares'])}  (Max {max_entropy:.2f})"),
    ("", f"{tables.percent(found['head_shares_observed_max'])}  ({observed})"),
    ("collapsed", _named(found["collapsed_heads"], f"below {max_entropy / 4:.2f} nats")),
    ("overloaded", _named(found["overloaded_heads"], f"{max_entropy * 3 / 4:.2f} nats and more")),
    ("non-finite rows", str(int(np.sum(found["nonfinite_rows_L"])))),
  ]  # fmt: skip


def heads(found: Mapping) -> str:
  """The mean entropy of every head, layers downwards."""
  entropy_LxH = np.asarray(found["entropy_LxH"], float)
  digits = 2 if entropy_LxH.shape[1] <= _WIDE else 1
  names = [f"H{h}" for h in range(entropy_LxH.shape[1])]
  shown = lambda values: [f"{value:.{digits}f}" for value in values]
  rows = [[f"L{l}", *shown(row_H), *shown([row_H.mean()])] for l, row_H in enumerate(entropy_LxH)]
  return "Entropy of each head, nats\n" + tables.text(["", *names, "mean"], rows)


def profile(found: Mapping) -> tuple[list[str], list[list[str]]]:
  """Mean entropies by how many tokens a row reads: head and rows of a table."""
  part_of = lambda part: f"{100 * part['entropy'] / part['ceiling']:.0f} %"
  rows = [[reads(part), f"{part['entropy']:.3f}", f"{part['ceiling']:.3f}", part_of(part)] for part in found["profile"]]
  return ["tokens read", "mean entropy", "ceiling", "of it"], rows


def reads(part: Mapping) -> str:
  """'5–8', the tokens that a row reads."""
  return f"{part['first']}" if part["first"] == part["last"] else f"{part['first']}–{part['last']}"


def layers(private: Mapping) -> tuple[list[str], list[list[str]]]:
  """What each layer's numbers reach, in the model's private form: head and rows of a table."""
  names = ["layer", "residual", "largest score", "lowest exponent", "LayerNorm variance", "activation input",
           "tightest", "bits to spare"]  # fmt: skip
  return names, [_layer(of) for of in private["layers"]]


def of_page(found: Mapping) -> dict:
  """The tables that the page has too, by name: each (head, rows)."""
  private = found["private"]
  return {"profile": profile(found)} | ({"layers": layers(private)} if "layers" in private else {})


def count(n: int, what: str) -> str:
  """'1 window' or '2 windows'."""
  return f"{n:,} {what}{'' if n == 1 else 's'}"


def _layer(of: Mapping) -> list[str]:
  head = of["layer"] is None
  variance = tables.NONE if of["variance"] is None else " … ".join(_short(value) for value in of["variance"])
  activation = tables.NONE if of["activation"] is None else _short(of["activation"])
  scores = (tables.NONE,) * 2 if head else (_short(of["score"]), _short(of["exponent"]))
  place = of["tightest"]["place"].partition(" (")[0]
  spare = f"{of['tightest']['spare_bits']:.1f}{'' if of['fits'] else ' (too few)'}"
  return ["head" if head else str(of["layer"]), _short(of["residual"]), *scores, variance, activation, place, spare]


def _short(value: float) -> str:
  return f"{value:.3g}"


def _named(names: Sequence[str], what: str) -> str:
  return f"{shorten(list(names), 16)}  ({what})" if names else f"none  ({what})"
