"""Prints what one forward pass and the whole training of a config count to.

    python -m entropy_attn.flops --config=configs/codeparrot_ereg.py [--json=FILE]

FLOPs and nonlinear operations are those of one forward pass over one sequence of T tokens, as the paper counts them.
"""

from collections.abc import Mapping

from entropy_attn import cli
from entropy_attn.report import tables


def text(found: Mapping) -> str:
  """The counts of `counts.summary`, with the paper's units."""
  ops = found["nonlinear_ops"]
  return tables.pairs([
    ("architecture", found["architecture"]),
    ("size", "L={num_layers}, H={num_heads}, d={d_model}, T={context_length}".format(**found)),
    ("FFN FLOPs", f"{found['ffn_flops'] / 1e9:.1f}B a sequence"),
    ("attention FLOPs", f"{found['attention_flops'] / 1e9:.1f}B a sequence"),
    ("nonlinear ops", "  ".join(op["notation"] for op in ops if op["published"])),
    ("left out by the paper", "  ".join(op["notation"] for op in ops if not op["published"])),
    ("parameters", f"{found['parameters']:,} ({found['parameters'] / 1e6:.1f}M)"),
    ("thresholds", f"{found['threshold_parameters']:,} (training only)"),
    ("training FLOPs", f"{found['training_flops_per_token'] / 1e6:.1f}M a token, vocabulary projection included"),
    ("whole training", f"{found['training_tokens']:,} tokens, {found['training_flops']:.3g} FLOPs"),
  ])  # fmt: skip


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_config()
  cli.define_json()


def main() -> None:
  """Prints the table."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn import counts

  found = counts.summary(cli.load_config())
  cli.write_json(found)
  print(text(found))


if __name__ == "__main__":
  cli.run(define_flags, main)
