"""Config and study files: Python files that define one function, and overrides of the fields of what it returns.

Those of ours go by name from any folder: they lie in the package where it is installed, and beside it in a clone.
"""

from collections.abc import Callable, Mapping
import difflib
import inspect
import pathlib
import re
import runpy
import traceback

from ml_collections import ConfigDict

from entropy_attn import fields, paths
from entropy_attn.errors import UserError, nearest, one_line

_PACKAGE = pathlib.Path(__file__).parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.with_name("configs")
STUDIES = CONFIGS / "studies"
# What ConfigDict says of a value of the wrong type.
_MISTYPED = re.compile(r"Could not override field '(\w+)' \(reference\)\. (.*) is of .* type <class '(?:.*\.)?(\w+)'>")


def load(spec: str, overrides: Mapping[str, object], what: str = "--config") -> ConfigDict:
  """The locked config of NAME or FILE, or either with :ARGUMENT, and overrides; `config.validate` is the caller's.

  Args:
    spec: where get_config() is defined, as `find` has it, and what it is called with.
    overrides: values by "group.field".
    what: names the file in a message about the path alone.

  Raises:
    UserError: for a file that cannot be loaded, or an override that its field does not accept.
  """
  file, colon, argument = spec.partition(":")
  config = call(find(file, what), "get_config", *([argument] if colon else []))
  if not isinstance(config, ConfigDict):
    raise UserError(f"{file}: get_config() returns {_a(config)}, not a ConfigDict: start from config.base()")
  for name, value in overrides.items():
    fields.find(name).check(name, value)
    group, field = name.split(".")
    if not isinstance(config.get(group), ConfigDict) or field not in config[group]:
      raise UserError(f"{file}: its config has no field {name}: start from config.base()")
    with config[group].ignore_type():  # checked above
      config[group][field] = float(value) if fields.find(name).kind is float and isinstance(value, int) else value
  return config.lock()


def find(text: str, what: str, ours: pathlib.Path = CONFIGS) -> pathlib.Path:
  """The file that a user names: by its path or, where it is one of ours, by its name alone.

  Ours are found, too, as they are written in a clone: 'configs/NAME.py'. A file of the user's own goes first.

  Args:
    text: a name or a path.
    what: names it in a message, such as "--config".
    ours: `CONFIGS` or `STUDIES`.

  Raises:
    UserError: for what is neither a path nor a name.
  """
  path, in_clone = paths.expand(text, what), ours.relative_to(CONFIGS.parent)
  if path.exists() and not path.is_dir():
    return path
  is_name = path == pathlib.Path(path.name) and not path.suffix
  if (is_name or path == in_clone / f"{path.stem}.py") and (ours / f"{path.stem}.py").is_file():
    return ours / f"{path.stem}.py"
  if path == pathlib.Path(path.name) and path.suffix == ".py" and path.stem in names(ours):
    raise UserError(f"{what}={text} does not exist: ours goes by its name alone, {what}={path.stem}")
  if path.is_dir() or not (is_name or (path.parent == in_clone and not in_clone.is_dir())):
    return path  # `function` says what is wrong with it
  near = nearest(path.stem, names(ours)) or ": python -m entropy_attn lists them"
  raise UserError(f"{what}={text} is neither a file nor the name of one of ours{near}")


def names(ours: pathlib.Path = CONFIGS) -> list[str]:
  """The names that `find` knows."""
  return sorted(path.stem for path in ours.glob("*.py"))


def call(path: pathlib.Path, name: str, *arguments: str):
  """What the function `name` of a Python file returns.

  Raises:
    UserError: for a file that is missing or faulty, that defines no such function, or one that cannot be called so.
  """
  found = function(path, name)
  try:
    inspect.signature(found).bind(*arguments)
  except TypeError:
    if arguments and not inspect.signature(found).parameters:
      raise UserError(f"{path} takes no argument: leave out ':{arguments[0]}'") from None
    raise UserError(f"{path}: {name}{inspect.signature(found)} must be callable with one text or nothing") from None
  return _guarded(path, lambda: found(*arguments))


def function(path: pathlib.Path, name: str) -> Callable:
  """The function `name` of a Python file.

  Raises:
    UserError: for a file that is missing or faulty, or that defines no such function.
  """
  if path.is_dir():
    raise UserError(f"{path} is a folder: name a file in it{_nearest_file(path / 'x')}")
  if not path.exists():
    raise UserError(f"{path} does not exist{_nearest_file(path)}")
  content = _guarded(path, lambda: runpy.run_path(str(path)))
  if not callable(content.get(name)):
    near = nearest(name, [key for key, value in content.items() if callable(value) and not key.startswith("_")])
    raise UserError(f"{path} defines no {name}(){near}")
  return content[name]


def _guarded(path: pathlib.Path, action: Callable):
  """What action() returns, with any error of the file's code as one line that says where."""
  try:
    return action()
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f"{error.filename or path}:{error.lineno or 1}: {error.msg}") from error
  except OSError as error:
    raise UserError(f"{path}: {error.strerror or error}{_line(path, error)}") from error
  except (Exception, SystemExit) as error:
    raise UserError(f"{path}{_line(path, error)}: {type(error).__name__}: {_one_line(error)}") from error


def _line(path: pathlib.Path, error: BaseException) -> str:
  """':12', the line of the file that was running, or ''."""
  frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
  return f":{frames[-1]}" if frames else ""


def _one_line(error: BaseException) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  text = _MISTYPED.sub(lambda found: f"{found[1]}={found[2]} must be of type {found[3]}", text)
  return one_line(text, 300)


def _nearest_file(path: pathlib.Path) -> str:
  """The nearest name in the folder of a path, all of them where they are few, or what is wrong with the folder."""
  if not path.parent.is_dir():
    return f": there is no folder {path.parent} in {pathlib.Path.cwd()}"
  names = sorted(file.stem for file in path.parent.glob("*.py"))
  close = difflib.get_close_matches(path.stem, names, n=1)
  if close:
    return f" (did you mean {path.with_name(close[0])}.py?)"
  few = ", ".join(f"{name}.py" for name in names[:6]) + (", …" if len(names) > 6 else "")
  return f": {path.parent}/ holds {few or 'no Python file'}"


def _a(value) -> str:
  return "nothing" if value is None else f"a {type(value).__name__}"
