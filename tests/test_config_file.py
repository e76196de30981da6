"""Config files: what is wrong with one is said in one line that says where."""

import pathlib

import pytest

from entropy_attn import config as config_lib
from entropy_attn import config_file
from entropy_attn.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# A config file's body, and what is said of it.
FILES = {
  "syntax": ("def get_config(:\n  pass", "syntax.py:1: "),
  "runs": ("def get_config():\n  return 1 / 0", "runs.py:2: ZeroDivisionError: division by zero"),
  "imports": ("import nowhere_at_all", "imports.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
  "exits": ("import sys\nsys.exit(3)", "exits.py:2: SystemExit: 3"),
  "named": ("def get_confg():\n  pass", "named.py defines no get_config() (did you mean 'get_confg'?)"),
  "value": ("get_config = 3", "value.py defines no get_config()"),
  "mapping": ("def get_config():\n  return {}", "get_config() returns a dict, not a ConfigDict"),
  "nothing": ("def get_config():\n  pass", "get_config() returns nothing, not a ConfigDict"),
  "two": ("def get_config(a, b):\n  pass", "get_config(a, b) must be callable with one text or nothing"),
  "typed": ("  c.train.steps = 1e3", "typed.py:4: TypeError: steps=1000.0 must be of type int"),
  "text": ("  c.optimizer.b1 = '0.5'", "text.py:4: TypeError: b1=0.5 must be of type float"),
  "none": ("  c.train.steps = None", "train.steps=None must be an integer"),
  "true": ("  c.train.steps = True", "train.steps=True must be an integer"),
  "nan": ("  c.optimizer.b1 = float('nan')", "optimizer.b1=nan must be a finite number"),
  "unknown": ("  c.model.normm = 'x'", "config: model has no field 'normm' (did you mean 'norm'?)"),
  "group": ("  c.modell = {}", "config: there is no group 'modell' (did you mean 'model'?)") ,
  "lacking": ("  del c.model.norm", "model.norm is missing; its default is 'layernorm'"),
  "headless": ("  del c['model']", "config: the group 'model' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_faulty_config_file_is_one_line_that_says_where(name, tmp_path):
  body, message = FILES[name]
  if body.startswith("  "):
    body = f"from entropy_attn import config\ndef get_config():\n  c = config.base()\n{body}\n  return c"
  (tmp_path / f"{name}.py").write_text(body + "\n")
  with pytest.raises(UserError) as found:
    config_lib.validate(config_file.load(str(tmp_path / f"{name}.py"), {}))
  assert message in str(found.value) and "\n" not in str(found.value)


def test_a_config_of_ours_is_found_from_any_folder_and_a_users_own_goes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ours = config_lib.codeparrot("T256", "ereg")
  for spec in ("codeparrot_ereg:T256", "configs/codeparrot_ereg.py:T256"):
    assert config_lib.differences(config_file.load(spec, {}), ours) == []
  (tmp_path / "codeparrot_ereg").mkdir()  # the folder of a run
  assert config_lib.differences(config_file.load("codeparrot_ereg:T256", {}), ours) == []
  (tmp_path / "configs").mkdir()
  own = "from entropy_attn import config\ndef get_config(text):\n  return config.codeparrot(text, 'sm')\n"
  (tmp_path / "configs" / "codeparrot_ereg.py").write_text(own)
  theirs = config_file.load("configs/codeparrot_ereg.py:T256", {})
  assert config_lib.architecture_name(theirs) == "SM"
  assert config_lib.differences(config_file.load("codeparrot_ereg:T256", {}), ours) == []


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("quikstart", "--config=quikstart is neither a file nor the name of one of ours (did you mean 'quickstart'?)"),
    ("configs/quikstart.py", "(did you mean 'quickstart'?)"),
    ("zzz", "python -m entropy_attn lists them"),
    ("quickstart.py", "quickstart.py does not exist: ours goes by its name alone, --config=quickstart"),
    ("mine.py", "mine.py does not exist"),
    ("studies/free", "there is no folder studies"),
  ],
)
def test_a_name_that_is_none_of_ours(spec, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as found:
    config_file.load(spec, {})
  assert message in str(found.value)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("quickstat.py", "quickstat.py does not exist (did you mean "),
    ("nowhere/a.py", "there is no folder "),
    ("", "is a folder: name a file in it"),
    ("quickstart.py:quick", "quickstart.py takes no argument: leave out ':quick'"),
    ("codeparrot_ereg.py:T127", "'T127' is not one of T128, T256, L18, quick (did you mean 'T128'?)"),
    ("codeparrot_ereg.py:", "'' is not one of T128, T256, L18, quick"),
  ],
)
def test_a_config_that_is_not_there_is_named_with_the_nearest(spec, message):
  with pytest.raises(UserError) as found:
    config_file.load(f"{CONFIGS}/{spec}", {})
  assert message in str(found.value)
