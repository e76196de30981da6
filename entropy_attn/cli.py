"""What every command shares: flags, the config, --help, and errors of one line with exit code 2.

Nothing here imports JAX, and no command does before its main(): a mistake in what was typed is answered at once.
"""

from collections.abc import Callable, Sequence
import contextlib
import json
import logging
import math
import os
import pathlib
import re
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import config_file, fields, paths, usage
from entropy_attn.errors import UserError, is_disk_full, nearest

FLAGS = flags.FLAGS
_HELP = re.compile(r"--?(help|helpshort|h|\?)")
_HELP_FULL = re.compile(r"--?helpfull")
_CONFIG = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)

_checks: list[Callable[[], None]] = []
_config: ConfigDict | None = None  # that of --config with its overrides, once the flags are parsed


class _PathParser(flags.ArgumentParser):
  """A pathlib.Path with `~` expanded."""

  syntactic_help = "a path"

  def __init__(self, name: str):
    self.name = name

  def parse(self, argument: str | os.PathLike) -> pathlib.Path:
    return paths.expand(argument, f"--{self.name}")

  def flag_type(self) -> str:
    return "path"


def define_path(name: str, default: str | None, help_text: str) -> None:
  """Defines a flag that names a file or folder: its value is a pathlib.Path with `~` expanded, or None."""
  flags.DEFINE(_PathParser(name), name, default, help_text, serializer=flags.ArgumentSerializer())


def define_checkpoint(help_text: str = "A run's folder, a Hugging Face folder, or a Hub name such as gpt2.") -> None:
  """Defines --checkpoint=SOURCE and --step, for `run.pretrained.load(…, what="--checkpoint")`; a text, or None."""
  flags.DEFINE_string("checkpoint", None, help_text)
  flags.DEFINE_integer("step", None, "With --checkpoint of a run: that of this step.", lower_bound=0)
  add_check(_check_checkpoint)


def define_config(*, required: bool = True) -> None:
  """Defines --config=NAME_OR_FILE[:ARGUMENT] and its overrides --config.group.field=value, for `load_config`."""
  flags.DEFINE_string("config", None, "NAME or FILE, or either with :ARGUMENT; python -m entropy_attn lists the names.")
  if required:
    add_check(_check_config)


def define_json() -> None:
  """Defines --json=FILE, for `write_json`."""
  define_path("json", None, "Also write the printed numbers to this file.")
  add_check(_check_json)


def add_check(check: Callable[[], None]) -> None:
  """Has check() called once the flags are parsed, before main() imports what is slow; it raises UserError."""
  _checks.append(check)


def load_config() -> ConfigDict:
  """The validated config of --config.

  Raises:
    UserError: without --config.
  """
  _check_config()
  return _config


def config_name() -> str:
  """The name of --config=NAME_OR_FILE[:ARGUMENT], fit for a folder: 'codeparrot_wnorm' or 'codeparrot_wnorm_qk+ffn'."""
  file, _, argument = FLAGS.config.partition(":")
  name = pathlib.Path(file).stem + (f"_{argument}" if argument else "")
  return re.sub(r"[^\w.+-]", "_", name)


def write_json(value) -> None:
  """Writes `value` to the file that --json names, if it names one.

  Raises:
    UserError: where it cannot be written.
  """
  if FLAGS.json is not None:
    paths.write_text(FLAGS.json, json.dumps(value, indent=2) + "\n", "--json")


def run(define_flags: Callable[[], None], main: Callable[[], None]) -> None:
  """A command: defines and parses its flags, and calls main().

  A UserError becomes one line on standard error and exit code 2.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    argv = FLAGS.read_flags_from_files(argv, force_gnu=False)
    end = argv.index("--") if "--" in argv else len(argv)
    if any(_HELP_FULL.fullmatch(arg) for arg in argv[1:end]):
      print(FLAGS.get_help())
      sys.exit(0)
    helps = [arg for arg in argv[1:end] if _HELP.fullmatch(arg)]
    if not helps:
      return _parse(argv, own)
    _show_help(sys.modules[main.__module__].__doc__ or "", own, [arg for arg in argv[:end] if arg not in helps])
    sys.exit(0)

  def body(_) -> None:
    main()

  with one_line_errors():
    there = set(FLAGS)
    define_flags()
    own = [name for name in FLAGS if name not in there]
    app.run(body, flags_parser=parse)


@contextlib.contextmanager
def one_line_errors():
  """Ends the process with one line on standard error, and code 2, for what the user can mend."""
  _open_streams()
  try:
    try:
      _check_working_directory()
      yield
    except SystemExit:
      _flush()
      raise
    _flush()
  except BrokenPipeError:  # whoever reads has enough, such as `| head`
    _silence(sys.stdout)
    sys.exit(1)
  except KeyboardInterrupt:
    _fail("interrupted before anything was to be saved")
  except (UserError, flags.Error, OSError, RuntimeError, AssertionError) as error:
    line = _line_of(error)
    if line is None:
      raise
    _fail(line)


def _parse(argv: Sequence[str], own: Sequence[str]) -> list[str]:
  """Parses the flags, loads and validates the config, and runs the checks; returns the command's name alone.

  Args:
    argv: the command's name, and what was typed.
    own: names of the command's flags, the likeliest to be meant by one that is mistyped.
  """
  global _config
  rest, overrides = _split(argv) if "config" in FLAGS else (list(argv), {})
  try:
    rest = FLAGS(rest)
  except flags.UnrecognizedFlagError as error:
    raise UserError(f"unknown flag --{error.flagname}{nearest(error.flagname, own)}: --help lists them") from None
  for name in FLAGS:
    if isinstance(FLAGS[name].value, float) and not math.isfinite(FLAGS[name].value):
      raise UserError(f"--{name}={FLAGS[name].value} must be a finite number")
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}: flags have the form --name=value")
  if FLAGS["verbosity"].using_default_value:  # app.run would choose INFO: the libraries' notes drown ours
    FLAGS.verbosity = absl_logging.WARNING
  logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it remarks on a home folder that is not there
  if "config" in FLAGS and FLAGS.config is not None:
    _config = config_file.load(FLAGS.config, overrides)
    config_lib.validate(_config)
  elif overrides:
    raise UserError(f"--config.{next(iter(overrides))} changes a config, but --config=FILE is missing")
  for check in _checks:
    check()
  return rest


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, object]]:
  """The arguments without --config.group.field=value, and these by "group.field"; as with absl, the last one counts.

  Raises:
    UserError: for an unknown field, or a value that it does not accept.
  """
  rest, overrides = [], {}
  arguments = iter(argv)
  for arg in arguments:
    if arg == "--":
      rest += [arg, *arguments]
      break
    found = _CONFIG.fullmatch(arg)
    if not found:
      rest.append(arg)
      continue
    no, name, text = found.groups()
    field = fields.find(name)
    if no and (field.kind is not bool or text is not None):
      raise UserError(f"{arg}: write --config.{name}=VALUE; --noconfig.{name} is for what is true or false")
    if text is None and field.kind is bool:
      text = "false" if no else "true"
    elif text is None:
      text = next(arguments, "--")
      if text.startswith("--"):
        raise UserError(f"--config.{name} has no value: write --config.{name}=VALUE, {field.rule}")
    overrides[name] = field.parse(name, text)
  return rest, overrides


def _show_help(doc: str, own: Sequence[str], argv: Sequence[str]) -> None:
  if "config" not in own:
    print(usage.text(doc, own, None, ""))
    return
  rest, overrides = _split(argv)
  FLAGS(rest, known_only=True)
  if FLAGS.config is not None:
    config, source = config_file.load(FLAGS.config, overrides), f"as {FLAGS.config} sets them"
  else:
    config, source = config_lib.base(), "with their defaults (--config=FILE --help: with a file's)"
    for name, value in overrides.items():
      group, field = name.split(".")
      config[group][field] = value
  print(usage.text(doc, own, config, source))


def _check_config() -> None:
  if FLAGS.config is None:
    raise UserError(
      "--config=FILE is missing, or a name such as --config=quickstart: python -m entropy_attn lists them"
    )


def _check_checkpoint() -> None:
  if FLAGS.checkpoint is None and FLAGS.step is not None:
    raise UserError("--step needs --checkpoint")
  if FLAGS.checkpoint is not None:
    paths.expand(FLAGS.checkpoint, "--checkpoint")


def _check_working_directory() -> None:
  try:
    os.getcwd()
  except OSError as error:
    raise UserError("the working directory was deleted, or cannot be read: cd to another") from error


def _check_json() -> None:
  path = FLAGS.json
  if path is None or ("multihost" in FLAGS and FLAGS.multihost):  # of several processes the first one alone writes it
    return
  workdir = FLAGS["workdir"].value if "workdir" in FLAGS else None
  if workdir is not None and not path.parent.exists() and path.is_relative_to(workdir):
    return  # the command makes that folder
  paths.check_writable(path, "--json")


def _line_of(error: BaseException) -> str | None:
  """What an error says to the user, on one line; None for one that is a fault of this program."""
  text = re.sub(r"\s*\n\s*", " ", str(error))
  if isinstance(error, UserError):
    return text
  if isinstance(error, flags.Error):
    text = re.sub(r"^(flag (?=--)|ERROR:: )", "", text)
    if choice := re.fullmatch(r"(--\w+)=(.*): value should be one of <(.*)>", text):
      name, value, choices = choice[1], choice[2], choice[3].split("|")
      return f"{name}={value!r} is not one of {', '.join(choices)}{nearest(value, choices)}"
    text = re.sub(r": invalid literal for int\(\).*", ": it is not an integer", text)
    text = re.sub(r": could not convert string to float.*", ": it is not a number", text)
    return re.sub(r"^(--\w+=.*): \S+ is not (.*)", r"\1 must be \2", text).replace("be number >=", "be at least")
  if is_disk_full(error):
    return "no space left on the disk: free some and run the same command again"
  if text.startswith("Could not determine home directory"):
    return "the home folder is unknown: set HOME, or write paths without ~, as in --config.data.data_dir=FOLDER"
  return _no_devices()


def _no_devices() -> str | None:
  """What to do where JAX_PLATFORMS names devices that are not here; None if it does not."""
  chosen, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")
  if not chosen or jax is None:
    return None
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # without a word for cuda
    reason = re.sub(r"\s+", " ", str(error)).partition(" (set JAX_PLATFORMS")[0]
    return f"JAX_PLATFORMS={chosen}: no such device here{reason and f' ({reason[:160]})'}: unset it, or set it to cpu"
  return None


def _fail(line: str) -> None:
  with contextlib.suppress(OSError):
    print(f"error: {line}", file=sys.stderr, flush=True)
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  _silence(sys.stdout)
  sys.exit(2)


def _open_streams() -> None:
  """Has standard output and error take any text, and be there.

  What cannot be encoded is replaced, here and in Python's child processes. A closed one swallows what is written: else
  the next file that is opened would take its number, and be printed into.
  """
  for name, descriptor in (("stdout", 1), ("stderr", 2)):
    if getattr(sys, name) is None:
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, descriptor)
      os.set_inheritable(descriptor, True)  # children have it, too
      setattr(sys, name, open(descriptor, "w"))
    stream = getattr(sys, name)
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="replace")
  os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:replace"


def _flush() -> None:
  """Writes out what was printed; where that cannot be, the command's work is done all the same.

  Raises:
    BrokenPipeError: if nobody reads it any more.
    UserError: for any other reason, such as a full disk.
  """
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    raise
  except OSError as error:
    _silence(sys.stdout)
    raise UserError(f"standard output cannot be written: {error.strerror or error}") from error


def _silence(stream) -> None:
  """Sends what is still to be written nowhere, or Python would complain of it once more at its end."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
