"""What every command shares: flags, the config file, and errors of one line with exit code 2."""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from entropy_attn import config as config_lib
from entropy_attn.errors import UserError, is_disk_full


def define_config() -> None:
  """Defines --config=FILE[:ARGUMENT] and its overrides --config.group.field=value, for `load_config`."""
  config_flags.DEFINE_config_file("config", None, "A file under configs/.", lock_config=True)


def define_json() -> None:
  """Defines --json=FILE, for `write_json`."""
  flags.DEFINE_string("json", None, "Also write the printed numbers to this file.")


def load_config() -> ConfigDict:
  """The validated config of --config.

  Raises:
    UserError: without --config, for a file that cannot be loaded, or for an invalid config.
  """
  config = flags.FLAGS.config
  if config is None:
    raise UserError("--config=FILE is missing; the files under configs/ are ready to use")
  if not isinstance(config, ConfigDict):
    raise UserError(f"--config={flags.FLAGS['config'].config_filename} cannot be loaded: {_load_error(config)}")
  config_lib.validate(config)
  return config


def config_name() -> str:
  """The name of --config=FILE[:ARGUMENT], fit for a folder: 'codeparrot_wnorm' or 'codeparrot_wnorm_qk+ffn'."""
  file, _, argument = flags.FLAGS["config"].config_filename.partition(":")
  name = pathlib.Path(file).stem + (f"_{argument}" if argument else "")
  return re.sub(r"[^\w.+-]", "_", name)


def write_json(value) -> None:
  """Writes `value` to the file that --json names, if it names one.

  Raises:
    UserError: where it cannot be written.
  """
  path = flags.FLAGS.json
  if path:
    try:
      pathlib.Path(path).write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
      raise UserError(f"--json={path} cannot be written: {error.strerror}") from error


def run(define_flags: Callable[[], None], main: Callable[[], None]) -> None:
  """A command: defines and parses its flags, and calls main().

  A UserError becomes one line on standard error and exit code 2.
  """
  define_flags()

  def parse(argv: Sequence[str]):
    try:
      rest = flags.FLAGS(argv)
    except flags.Error as error:
      raise UserError(str(error)) from error
    except (AttributeError, KeyError) as error:  # how config_flags reports an unknown field
      raise UserError(f"config: no such field: {_one_line(error)}") from error
    except UserError:
      raise
    except Exception as error:  # a config file that does not import, or refuses its argument
      raise UserError(f"--config: {type(error).__name__}: {_one_line(error)}") from error
    if len(rest) > 1:
      raise UserError(f"unexpected argument {rest[1]!r}: flags have the form --name=value")
    if flags.FLAGS["verbosity"].using_default_value:  # app.run would choose INFO: the libraries' notes drown ours
      flags.FLAGS.verbosity = logging.WARNING
    return rest

  def guarded(_):
    main()

  try:
    app.run(guarded, flags_parser=parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except BrokenPipeError:  # whoever reads has enough, such as `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so once more at its end
    sys.exit(1)
  except OSError as error:
    if not is_disk_full(error):
      raise
    print("error: no space left on the disk: free some and run the same command again", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("error: interrupted before anything was to be saved", file=sys.stderr)
    sys.exit(2)


def _load_error(broken) -> str:
  """The reason that config_flags hides in the stand-in it returns for a file it could not load."""
  error = getattr(broken, "__dict__", {}).get("_error")
  return _one_line(error) if error else "get_config() returned no ConfigDict"


def _one_line(error: BaseException) -> str:
  text = str(error.args[0] if error.args else error)
  return re.sub(r"\s+", " ", text.replace("\\n", " ").replace("\\", "")).strip("'\" ")
