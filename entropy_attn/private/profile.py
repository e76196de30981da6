"""Runs a model as real two-party computation on this machine, and accounts every byte by operation and by layer.

    python -m entropy_attn.private.profile --checkpoint=runs/quickstart
    python -m entropy_attn.private.profile --config=configs/codeparrot_scfuffn.py --layers=2

Two processes over loopback TCP: the server holds the weights, the client the tokens; only the client learns the logits.
"""

from collections.abc import Mapping
import time

from absl import flags as absl_flags

from entropy_attn import cli
from entropy_attn.private import flags
from entropy_attn.private.price import account

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  flags.define_model()
  flags.define_plan()
  flags.define_transforms()
  flags.define_length()
  absl_flags.DEFINE_integer("layers", None, "Run so many layers and extrapolate.", lower_bound=1)
  flags.define_error()
  flags.define_offline()
  absl_flags.DEFINE_float("rtt", 0.0, "Round-trip time in ms to imitate.", lower_bound=0.0)
  absl_flags.DEFINE_float("bandwidth", None, "Mbit/s each way to imitate.", lower_bound=0.001)
  flags.define_threads()
  cli.define_json()


def main() -> None:
  """Profiles one inference; prints it, and saves it in the run's folder where there is one."""
  started = time.monotonic()
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import measure
  from entropy_attn.private.parties.pair import Link
  from entropy_attn.report import costs
  from entropy_attn.run import folder

  model = flags.load_model()
  transforms = flags.transforms_of(model.config.model)
  result = measure.profile(
    model,
    transforms,
    length=model.config.model.context_length if FLAGS.length is None else FLAGS.length,
    layers=FLAGS.layers,
    error=flags.error(),
    offline=flags.offline(transforms),
    link=Link(FLAGS.rtt / 1e3, FLAGS.bandwidth and FLAGS.bandwidth * 1e6 / 8),
    threads=FLAGS.threads,
  )
  saved = folder.write_profile(model.folder, result, costs.profile(result)) if model.folder is not None else []
  cli.write_json(result)
  print(text(result))
  if saved:
    path, picture = saved
    print(f"\nsaved in {path} and {picture.name}; {time.monotonic() - started:.0f} s in all")


def text(result: Mapping) -> str:
  """A profile as tables."""
  tightest = result["tightest_range"]
  parts = [
    f"{result['model']}: {result['length']} tokens, {result['threads']} threads a party",
    account.phases_text(result),
    account.table("layer", result["by_layer"]),
    f"largest error of a logit {result['max_abs_error']:.2g} (logits up to {result['largest_logit']:.3g}); "
    f"next token {'the same' if result['same_next_token'] else 'ANOTHER'}",
    f"range: {tightest['place']} comes nearest to what its ring holds: {tightest['spare_bits']:.1f} doublings are left",
    "peak memory: " + ", ".join(f"{role} {size / 2**30:.2f} GiB" for role, size in result["peak_rss_bytes"].items()),
  ]
  if result["remade"]:
    parts.append(f"{result['remade']} products of masks failed when they were verified, and were made anew")
  if result["transforms"]["eliminate_ffns"]:
    kept = ", ".join(map(str, result["kept_ffns"])) or "none"
    parts.append(f"FFNs kept: {kept}; the basis is conditioned up to {max(result['condition_numbers']):.3g}")
  if result["measured_layers"] < result["num_layers"]:
    how = (
      "equal layers cost the same, but for the engine's stock of transfers, filled up now and then"
      if result["extrapolation_exact"]
      else "approximate: some layers have no equal"
    )
    parts.append(
      f"{result['measured_layers']} of {result['num_layers']} layers were run "
      f"({result['measured_bytes'] / 1e9:.3f} GB); the rest is extrapolated: {how}"
    )
  return "\n\n".join(parts)


if __name__ == "__main__":
  cli.run(define_flags, main)
