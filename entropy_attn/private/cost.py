"""The price of private inference from a config alone: bytes, rounds, latency and memory, without running anything.

    python -m entropy_attn.private.cost --config=configs/codeparrot_scfuffn.py
    python -m entropy_attn.private.cost --config=configs/codeparrot_ln_gelu.py --compare=configs/codeparrot_scfuffn.py
    python -m entropy_attn.private.cost --config=configs/quickstart.py --length=20 --tokens=8
    python -m entropy_attn.private.cost --function=mine.py:activation --shape=128x3072

It needs no engine; `price.predict` and `price.function` are what it calls.
"""

from collections.abc import Mapping
import pathlib

from absl import flags as absl_flags

from entropy_attn import cli, config_file, paths
from entropy_attn import config as config_lib
from entropy_attn.errors import UserError
from entropy_attn.private import flags
from entropy_attn.private.price import account, lines
from entropy_attn.private.program.spec import parse_transforms

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_config(required=False)
  absl_flags.DEFINE_string(
    "checkpoint",
    None,
    "Instead of --config: a run's folder, a Hugging Face folder or a Hub name, to be priced.",
  )
  flags.define_transforms()
  flags.define_reveal("logits")
  flags.define_length()
  flags.define_offline()
  flags.define_error()
  absl_flags.DEFINE_bool(
    "plan",
    False,
    "Choose the transforms of least latency over the one --line, for profile, serve and perplexity.",
  )
  absl_flags.DEFINE_integer("past", 0, "Tokens before these, whose keys and values are there.", lower_bound=0)
  absl_flags.DEFINE_integer("tokens", 1, "To generate: the prompt's, and each further one's cost.", lower_bound=1)
  absl_flags.DEFINE_integer(
    "threads", 2, "Of each party: keys grow with them; seconds stay those of two cores.", lower_bound=1
  )
  absl_flags.DEFINE_multi_string(
    "compare", [], "FILE[:ARGUMENT] of a config, a run's folder or name=value,… of transforms, to set beside the model."
  )
  absl_flags.DEFINE_string("function", None, "FILE.py:NAME, instead of a model: a JAX function, with its --shape=…")
  absl_flags.DEFINE_multi_string("shape", [], "One an argument: 128x768, 768x64:server, 12:client, 9x9:int32, scalar.")
  absl_flags.DEFINE_string("rules", None, "FILE.py:NAME: returns costs of operations of one's own for --function.")
  absl_flags.DEFINE_enum("setting", "cheap", ["cheap", "stock"], "Of the engine for --function.")
  absl_flags.DEFINE_multi_string("line", list(lines.LINES), "A line's name or MBIT,RTT; may be given several times.")
  cli.define_path("lines", None, 'JSON file of lines by name: {"office": [300, 20], …}, for --line.')
  absl_flags.DEFINE_float(
    "compute", 1.0, "Of the computation's seconds on two cores, the part that another machine takes.", lower_bound=0.0
  )
  cli.define_path("csv", None, "Also write operation × layer to this file.")
  cli.define_json()
  cli.add_check(check_flags)


def check_flags() -> None:
  """Raises UserError unless one thing is to be priced, over lines that are there."""
  given = [name for name in ("config", "checkpoint", "function") if FLAGS[name].value is not None]
  if len(given) != 1:
    raise UserError("--config=FILE is missing, or --checkpoint=SOURCE, or --function=FILE.py:NAME: name one to price")
  if FLAGS.function is None and (FLAGS.shape or FLAGS.rules):
    raise UserError("--shape and --rules are for --function=FILE.py:NAME")
  if FLAGS.function is not None:
    for name in ("function", "rules"):
      _named(name)
    if not FLAGS.shape or FLAGS.compare or FLAGS.csv is not None:
      raise UserError("--function needs --shape=128x768, one an argument, and takes neither --compare nor --csv")
  if FLAGS.plan and (FLAGS.function is not None or FLAGS.compare or len(FLAGS.line) != 1):
    raise UserError("--plan is for one model and one line: give --line=NAME or --line=MBIT,RTT, and no --compare")
  if FLAGS.csv is not None:
    paths.check_writable(FLAGS.csv, "--csv")
  _lines()


def main() -> None:
  """Prints the prediction."""
  named = _lines()
  result, parts = _function() if FLAGS.function is not None else _models(named)
  result |= _latencies(result, named)
  cli.write_json(result)
  if FLAGS.compare:  # each model's latencies stand beside its name
    print("\n\n".join(parts))
    return
  rows = [f"{name} ({megabits:g} Mbit/s, {rtt:g} ms): {_took(result, name)}" for name, (megabits, rtt) in named.items()]
  note = "with the computation of two cores (--compute); keys are made once a session"
  print("\n\n".join([*parts, "\n".join([*rows, note])]))


def _models(named: Mapping[str, tuple[float, float]]) -> tuple[dict, list[str]]:
  """The prediction of the model and of those beside it, and its text."""
  base = _config_of(FLAGS.checkpoint, "--checkpoint") if FLAGS.checkpoint is not None else cli.load_config()
  options = {"past": FLAGS.past, "tokens": FLAGS.tokens, "threads": FLAGS.threads, "error": FLAGS.error}
  options |= flags.reveal()
  if FLAGS.plan:
    return _planned(base, next(iter(named.values())), options)
  models = {FLAGS.config or str(FLAGS.checkpoint): (base, FLAGS.transforms)}
  models |= {text: _beside(text, base) for text in FLAGS.compare}
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.price.predict import of_config

  def cost_of(config, text: str) -> dict:
    transforms = flags.transforms_for(config.model, text)
    return of_config(config, transforms, FLAGS.length, offline=flags.offline(transforms), **options)

  results = {name: cost_of(*model) for name, model in models.items()}
  if FLAGS.csv is not None:
    paths.write_text(FLAGS.csv, account.csv_text(results), "--csv")
  result = next(iter(results.values()))
  if len(results) == 1:
    return result, _model_text(result)
  others = list(results.items())[1:]
  result["compared"] = [{"model": name} | _latencies(r, named) | r for name, r in others]
  return result, [_comparison_text(results, named)]


def _planned(config, line: tuple[float, float], options: Mapping) -> tuple[dict, list[str]]:
  """The prediction of the transforms that are best for a line, and what was chosen."""
  from entropy_attn.private.price.plan import plan
  from entropy_attn.progress import say

  transforms = flags.transforms_for(config.model, FLAGS.transforms)
  offline = flags.offline(transforms)
  options = {**options, "offline": offline, "compute": FLAGS.compute}
  found = plan(config, transforms, line, FLAGS.length, on_try=lambda change: say(f"trying {change}"), **options)
  result = found["result"]
  changes = ",".join(filter(None, (FLAGS.transforms, found["transforms"])))
  result["plan"] = {"transforms": changes, "error": FLAGS.error, "line": line, "chosen": found["chosen"]}
  what = "with the prompt" if offline else "in all"
  rows = [f"{c['change']}: {c['before']:,.1f} s {what} become {c['after']:,.1f} s" for c in found["chosen"]]
  best = f"plan for {line[0]:g} Mbit/s, {line[1]:g} ms: --transforms={changes}"
  plan_text = "\n".join([best if found["chosen"] else "plan: the transforms as they are take least", *rows])
  return result, [*_model_text(result), plan_text]


def _beside(text: str, base) -> tuple:
  """A config and the transforms of --compare=TEXT: another model as --transforms says, or the same one otherwise."""
  if "=" in text or text == "stock":
    parse_transforms(text)
    return base, f"{FLAGS.transforms},{text}"
  path = paths.expand(text, "--compare")
  if path.is_dir():
    return _config_of(path, "--compare"), FLAGS.transforms
  config = config_file.load(text, {}, "--compare")
  config_lib.validate(config)
  return config, FLAGS.transforms


def _config_of(source, what: str):
  from entropy_attn.run import source as source_lib  # only here: it imports JAX

  return source_lib.read_config(source, what)


def _model_text(result: Mapping) -> list[str]:
  memory = ", ".join(f"{role} {size / 2**30:.1f} GiB" for role, size in result["peak_rss_bytes"].items())
  after = f" after {FLAGS.past}" if FLAGS.past else ""
  more = f" and {FLAGS.tokens - 1} more, one by one" if FLAGS.tokens > 1 else ""
  parts = [
    f"{result['architecture']}, {result['length']} tokens{after}{more}, predicted",
    account.phases_text(result),
    account.table("layer", result["by_layer"]),
  ]
  if FLAGS.tokens > 1:
    parts.append(account.tokens_table(result["length"], result["by_token"]))
  return [*parts, f"peak memory, roughly: {memory}"]


def _comparison_text(results: Mapping[str, Mapping], named: Mapping) -> str:
  legend = []
  for i, (name, result) in enumerate(results.items()):
    here = _latencies(result, named)
    took = ", ".join(f"{line} {_took(result | here, line)}" for line in named)
    legend.append(f"{chr(ord('A') + i)}: {result['architecture']}, {result['length']} tokens, {name}: {took}")
  return "\n".join([*legend, "", account.side_by_side(list(results.values()))])


def _function() -> tuple[dict, list[str]]:
  """The price of --function, and its text."""
  from entropy_attn.private.price import function as function_lib

  arguments = [function_lib.parse_shape(text) for text in FLAGS.shape]
  rules = config_file.call(*_named("rules")) if FLAGS.rules is not None else {}
  if not isinstance(rules, Mapping):
    raise UserError(f"--rules={FLAGS.rules} returns a {type(rules).__name__}, not a dict from operations to costs")
  called = config_file.function(*_named("function"))
  result = function_lib.price(called, arguments, setting=FLAGS.setting, rules=rules)
  head = f"{FLAGS.function}({', '.join(FLAGS.shape)}), {FLAGS.setting} settings, predicted"
  if not result["by_operation"]:
    return result, [f"{head}: nothing of it works on secrets"]
  return result, [head, account.table("operation", result["by_operation"], by_size=True)]


def _named(flag: str) -> tuple[pathlib.Path, str] | None:
  """File and name of --function or --rules."""
  text = FLAGS[flag].value
  if text is None:
    return None
  file, colon, name = text.rpartition(":")
  if not colon or not name.isidentifier():
    raise UserError(f"--{flag}={text!r} has not the form FILE.py:NAME")
  path = paths.expand(file, f"--{flag}")
  if not path.is_file():
    raise UserError(f"--{flag}={text}: there is no file {path}")
  return path, name


def _lines() -> dict[str, tuple[float, float]]:
  """The lines that are asked for, by name: where no --line is given, the usual ones and all of --lines."""
  named = lines.LINES if FLAGS.lines is None else lines.LINES | lines.read(FLAGS.lines)
  if FLAGS["line"].using_default_value:
    return dict(named)
  return {name: lines.parse(name, named) for name in FLAGS.line}


def _latencies(result: Mapping, named: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
  if "online" in result:
    return lines.latencies(result, named, FLAGS.compute)
  return {"latency_seconds": {name: lines.latency(result, *line, FLAGS.compute) for name, line in named.items()}}


def _took(result: Mapping, line: str) -> str:
  """'664 s, 35 s of it with the prompt'."""
  online = f", {result['online_latency_seconds'][line]:,.1f} s of it with the prompt" if "online" in result else ""
  return f"{result['latency_seconds'][line]:,.1f} s{online}"


if __name__ == "__main__":
  cli.run(define_flags, main)
