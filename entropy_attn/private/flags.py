"""Flags that several private commands share: the model, its transforms, and the line to the other party."""

from absl import flags

from entropy_attn import cli, files
from entropy_attn.errors import UserError
from entropy_attn.private.parties.sockets import Tls
from entropy_attn.private.program import squares
from entropy_attn.private.program.spec import (
  REVEALS,
  STOCK,
  TOP_K,
  TOP_K_MOST,
  Transforms,
  parse_transforms,
  transforms_for,
)

FLAGS = flags.FLAGS


def define_model() -> None:
  """Defines --checkpoint, --step and --config, for `load_model`."""
  cli.define_checkpoint()
  cli.define_config(required=False)
  cli.add_check(_check_model)


def _check_model() -> None:
  if FLAGS.checkpoint is None and FLAGS.config is None:
    raise UserError("name a model: --checkpoint=SOURCE, or --config=FILE for an untrained one")


def load_model():
  """The `run.pretrained.Pretrained` that the flags name.

  Raises:
    UserError: for one that cannot be read.
  """
  from entropy_attn.run import pretrained  # only here: it imports JAX, which the flags of a mistyped command need not

  if FLAGS.checkpoint is not None:
    return pretrained.load(FLAGS.checkpoint, FLAGS.step, what="--checkpoint")
  return pretrained.untrained(cli.load_config())


def define_plan() -> None:
  """Defines --plan, for `transforms_of` and `error`."""
  cli.define_path("plan", None, "What private.cost --plan --json wrote: its transforms and error, before those given.")
  cli.add_check(_plan)


def _plan() -> dict:
  """The plan that --plan names; without, an empty one.

  Raises:
    UserError: where the file holds none.
  """
  if FLAGS.plan is None:
    return {"transforms": "", "error": squares.ERROR}
  try:
    found = (files.read_json(FLAGS.plan) or {})["plan"]
    parse_transforms(found["transforms"])
    return {"transforms": found["transforms"], "error": float(found["error"])}
  except OSError as error:
    raise UserError(f"--plan={FLAGS.plan} cannot be read: {error.strerror}") from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"--plan={FLAGS.plan} is not what private.cost --plan --json=FILE writes") from error


def define_transforms() -> None:
  """Defines --transforms, for `transforms_of`."""
  flags.DEFINE_string(
    "transforms", "", "name=value,… of private.program.spec.Transforms, e.g. triangle=off; or stock: none at all."
  )
  cli.add_check(_check_transforms)


def _check_transforms() -> None:
  bound = parse_transforms(FLAGS.transforms).condition_bound
  if not bound >= 1:  # nor what is no number
    raise UserError(f"transform condition_bound={bound:g} must be at least 1: no basis is conditioned better")


def transforms_of(model_config) -> Transforms:
  """All that an architecture allows, changed as --plan says, and then as --transforms.

  Raises:
    UserError: for an unknown name or value.
  """
  return transforms_for(model_config, f"{_plan()['transforms']},{FLAGS.transforms}")


def error() -> float:
  """What --error says, or else the plan."""
  return FLAGS.error if FLAGS["error"].present else _plan()["error"]


def define_error() -> None:
  """Defines --error."""
  flags.DEFINE_float(
    "error", squares.ERROR, "Of each layer's exponential: see private.program.squares.", lower_bound=0.0
  )
  cli.add_check(_check_error)


def _check_error() -> None:
  least = min(fit.error for fit in squares.table()["exponential"])
  if FLAGS.error < least:
    raise UserError(f"--error={FLAGS.error:g} is less than the best chain of squares has: allow {least:.1e} or more")


def define_reveal(default: str) -> None:
  """Defines --reveal and --top_k, for `reveal`."""
  flags.DEFINE_enum(
    "reveal", default, REVEALS, "What a client learns of an answer: its token, the --top_k largest logits, or all."
  )
  flags.DEFINE_integer(
    "top_k", TOP_K, f"With --reveal=top_k, at most {TOP_K_MOST}.", lower_bound=1, upper_bound=TOP_K_MOST
  )
  cli.add_check(_check_reveal)


def _check_reveal() -> None:
  if FLAGS.reveal != "top_k" and FLAGS["top_k"].present:
    raise UserError("--top_k needs --reveal=top_k")


def reveal() -> dict[str, object]:
  """What --reveal and --top_k say, as arguments of `Spec.revealing`."""
  return {"reveal": FLAGS.reveal, "top_k": FLAGS.top_k}


def define_length() -> None:
  """Defines --length."""
  flags.DEFINE_integer("length", None, "Tokens of the prompt; default: the model's context length.", lower_bound=1)


def define_offline() -> None:
  """Defines --offline, for `offline`."""
  flags.DEFINE_enum(
    "offline", "on", ["on", "off"], "Whether products are made before there is a prompt; never with --transforms=stock."
  )


def offline(transforms: Transforms) -> bool:
  """Whether products are made before there is a prompt: the stock program does all with it."""
  return FLAGS.offline == "on" and transforms != STOCK


def define_threads() -> None:
  """Defines --threads."""
  flags.DEFINE_integer(
    "threads", 0, "Of each party that runs here; 0: as many as it has cores, at most 8.", lower_bound=0
  )


def define_party() -> None:
  """Defines what a party over the network needs, for `party`: --tls_cert, --tls_key, --tls_ca, --timeout, --threads."""
  cli.define_path("tls_cert", None, "This party's certificate, PEM; with --tls_key and --tls_ca.")
  cli.define_path("tls_key", None, "Its key, PEM.")
  cli.define_path("tls_ca", None, "The authority that signed the other's certificate, PEM.")
  flags.DEFINE_float(
    "timeout", 30.0, "Seconds without a sign of the other party until it is given up.", lower_bound=1.0
  )
  define_threads()
  cli.add_check(party)


def party() -> tuple[Tls | None, float, int]:
  """TLS or None, the timeout in seconds, and the threads of this party.

  Raises:
    UserError: where only a part of TLS is given.
  """
  files = (FLAGS.tls_cert, FLAGS.tls_key, FLAGS.tls_ca)
  if any(files) and not all(files):
    raise UserError("TLS needs all of --tls_cert, --tls_key and --tls_ca")
  return Tls(*map(str, files)) if all(files) else None, FLAGS.timeout, FLAGS.threads
