"""The README.md of an exported model: what it is, how it opens, and what is known of it."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import sizes

_BINS = ("lowest", "second", "third", "highest")
_OPENS = {
  "gpt2": """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")
```

or, with the entropy of every head, `entropy_attn.load("FOLDER")`.
""",
  "entropy_attn": """\
It is no GPT-2, and `transformers` does not open it.

```python
import jax.numpy as jnp

import entropy_attn
from entropy_attn.model import GPT

trained = entropy_attn.load("FOLDER")
tokens = jnp.array(trained.tokenizer.encode_batch(["Once upon a time"]))
logits, out = GPT(trained.config).apply(trained.variables, tokens)  # out["entropy"] [L, B, T, H]
```
""",
}


def text(
  config: ConfigDict, *, form: str, folded: Sequence[str], parameters: int, summary: Mapping | None, made_of: Mapping
) -> str:
  """A model card in Markdown.

  Args:
    form: of `write.form_of`.
    folded: fields that went into the weights; empty: every number is as it was trained.
    parameters: how many numbers are learned.
    summary: of the run, where it is of these very weights; None: nothing is known of what they reach.
    made_of: command and commit, where they are known.
  """
  m, name = config.model, config_lib.architecture_name(config)
  parts = [
    "---\nlibrary_name: "
    + ("transformers" if form == "gpt2" else "entropy_attn")
    + "\npipeline_tag: text-generation\n---",
    f"# {name}",
    f"A causal language model of the architecture {name} ({parameters:,} parameters), written by "
    "`python -m entropy_attn.export`.",
    _OPENS[form].strip(),
    _table(_architecture(m)),
  ]
  if folded:
    parts.append(f"Folded into the weights, exactly but for rounding: {', '.join(f'`{field}`' for field in folded)}.")
  if summary is not None:
    parts += ["## What it reaches", _table(_reached(summary))]
  known = [(key, f"`{made_of[key]}`") for key in ("command", "commit") if made_of.get(key)]
  if known:
    parts += ["## Where it comes from", _table(known)]
  return "\n\n".join(parts) + "\n"


def _architecture(m) -> list[tuple[str, str]]:
  rows = [
    ("layers, heads, width", f"{m.num_layers}, {m.num_heads}, {m.d_model}"),
    ("FFN", "one linear" if m.ffn == "fused" else f"{sizes.ffn_width(m)} hidden units, {m.activation}"),
    ("normalisation", f"{m.norm}, epsilon {m.layer_norm_epsilon:g}"),
    ("temperature", m.temperature),
    ("positions, vocabulary", f"{m.max_positions:,}, {m.vocab_size:,}"),
    ("trained on sequences of", f"{m.context_length:,} tokens"),
  ]
  return [row for row in rows if row[0] != "temperature" or m.temperature != "none"]


def _reached(summary: Mapping) -> list[tuple[str, str]]:
  rows = [("step", f"{summary['step']:,}")]
  if summary.get("perplexity") is not None:
    rows.append(("perplexity", f"{summary['perplexity']:.3f} on {summary['tokens']:,} tokens"))
  if summary.get("bits_per_byte") is not None:
    rows.append(("bits a byte", f"{summary['bits_per_byte']:.3f}"))
  if summary.get("head_shares") is not None:
    shares = ", ".join(f"{share:.0%} {where}" for share, where in zip(summary["head_shares"], _BINS, strict=True))
    rows.append((f"heads by quarter of {summary['max_entropy']:.2f} nats", shares))
  private = summary.get("private_inference")
  if private:
    cost = f"{private['total_bytes'] / 1e9:.2f} GB, {private['rounds']:,.0f} rounds for {private['length']} tokens"
    rows.append(("private inference, predicted", cost))
  return rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
  return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
