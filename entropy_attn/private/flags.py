"""Flags that several private commands share: the model, its transforms, and the line to the other party."""

from absl import flags

from entropy_attn import cli
from entropy_attn.errors import UserError
from entropy_attn.private.parties.sockets import Tls
from entropy_attn.private.program import ranges
from entropy_attn.private.program.spec import Transforms, transforms_for
from entropy_attn.run import pretrained

FLAGS = flags.FLAGS


def define_model() -> None:
  """Defines --checkpoint, --step and --config, for `load_model`."""
  flags.DEFINE_string("checkpoint", None, "A run's folder: its newest checkpoint.")
  flags.DEFINE_integer("step", None, "With --checkpoint: that of this step.")
  cli.define_config()


def load_model() -> pretrained.Pretrained:
  """The model that the flags name.

  Raises:
    UserError: without --checkpoint or --config, or for one that cannot be read.
  """
  if FLAGS.checkpoint:
    return pretrained.load(FLAGS.checkpoint, FLAGS.step)
  if FLAGS.step is not None:
    raise UserError("--step needs --checkpoint")
  if FLAGS.config is None:
    raise UserError("name a model: --checkpoint=RUN, or --config=FILE for an untrained one")
  return pretrained.untrained(cli.load_config())


def define_transforms() -> None:
  """Defines --transforms, for `transforms_of`."""
  flags.DEFINE_string(
    "transforms", "", "name=value,… of private.program.spec.Transforms, e.g. triangle=off; or stock: none at all."
  )


def transforms_of(model_config) -> Transforms:
  """All that an architecture allows, changed as --transforms says.

  Raises:
    UserError: for an unknown name or value.
  """
  return transforms_for(model_config, FLAGS.transforms)


def define_error() -> None:
  """Defines --error."""
  flags.DEFINE_float("error", ranges.ERROR, "Of each layer's exponential: see private.program.squares.")


def define_length() -> None:
  """Defines --length."""
  flags.DEFINE_integer("length", None, "Tokens of the prompt; default: the model's context length.")


def define_threads() -> None:
  """Defines --threads."""
  flags.DEFINE_integer("threads", 0, "Of each party that runs here; 0: as many as it has cores.")


def define_party() -> None:
  """Defines what a party over the network needs, for `party`: --tls_cert, --tls_key, --tls_ca, --timeout, --threads."""
  flags.DEFINE_string("tls_cert", None, "This party's certificate, PEM; with --tls_key and --tls_ca.")
  flags.DEFINE_string("tls_key", None, "Its key, PEM.")
  flags.DEFINE_string("tls_ca", None, "The authority that signed the other's certificate, PEM.")
  flags.DEFINE_float("timeout", 30.0, "Seconds without a sign of the other party until it is given up.")
  define_threads()


def party() -> tuple[Tls | None, float, int]:
  """TLS or None, the timeout in seconds, and the threads of this party.

  Raises:
    UserError: where only a part of TLS is given.
  """
  files = (FLAGS.tls_cert, FLAGS.tls_key, FLAGS.tls_ca)
  if any(files) and not all(files):
    raise UserError("TLS needs all of --tls_cert, --tls_key and --tls_ca")
  return Tls(*files) if all(files) else None, FLAGS.timeout, FLAGS.threads
