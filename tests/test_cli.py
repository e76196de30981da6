"""What every command does with its flags, its output and its reader."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from command_line import COMMANDS, CONFIG, DRY, NEEDED, ROOT, SLOW, call, dry, error, run
import pytest

from entropy_attn import __main__ as listing
from entropy_attn import fields, paths, processes
from entropy_attn.errors import UserError

STUDIES = f"""
import pathlib, sys
from entropy_attn.study import runs
for file in sys.argv[1:]:
  for job in runs.jobs(runs.load_study(file)):
    runs.load_config(job, pathlib.Path("x"))
print([name for name in {SLOW} if name in sys.modules])
"""
LONELY = """
from entropy_attn import cli, main, processes
processes.PATIENCE = 1
cli.run(main.define_flags, processes.join)
"""
HOMELESS = """
import pathlib
from entropy_attn import cli
cli.run(lambda: None, lambda: pathlib.Path("~nobody77").expanduser())
"""
# What an installer makes of [project.scripts].
SCRIPT = "import sys; from entropy_attn.__main__ import main; sys.exit(main())"
SHOWN = """
import subprocess, sys
from entropy_attn import cli
def main():
  print(chr(0x2265) * 2, flush=True)
  print(chr(0x2265), file=sys.stderr, flush=True)
  subprocess.run([sys.executable, "-c", "print(chr(0x2265))"])
cli.run(lambda: None, main)
"""
SILENT = """
import os, subprocess, sys
from entropy_attn import cli
def write(path, text):
  with open(path, "w") as file:
    os.write(1, b"to the terminal")
    os.write(2, b"to the terminal")
    file.write(text)
def main():
  print("to the terminal", flush=True)
  write("{0}", "own")
  child = "import os; file = open('{1}', 'w'); os.write(1, b'x'); os.write(2, b'x'); file.write('child')"
  subprocess.run([sys.executable, "-c", child], check=True)
cli.run(lambda: None, main)
"""
LAZY = """
import sys, entropy_attn
print("jax" in sys.modules, entropy_attn.model.__name__, entropy_attn.entropy.__name__, hasattr(entropy_attn, "x"))
print(entropy_attn.dot_product_attention.__name__)
print({"load", "entropy", "model", "dot_product_attention"} <= set(dir(entropy_attn)))
"""


@functools.cache
def described(command):
  done = dry(command, *NEEDED[command])
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_nothing_slow_is_imported_before_the_flags_and_the_config_are_found_to_be_right(command):
  assert described(command)["slow"] == []


def test_nothing_slow_is_imported_to_check_a_study():
  done = call("-c", STUDIES, *(ROOT / "configs" / "studies").glob("*.py"))
  assert done.stdout == "[]\n", done.stderr


# FILE:ARGUMENT, taken apart by the command; a checkpoint may be a name on the Hub.
FILES_AND_MORE = ("config", "study", "function", "rules", "compare", "checkpoint", "model")


@pytest.mark.parametrize(
  "flags",
  [["--config=~/no.py"], [CONFIG, "--compare=~/no.py"], ["--function=~/no.py:f", "--shape=3"],
   [f"--function={__file__}:call", "--shape=3", "--rules=~/no.py:f"]],
)  # fmt: skip
def test_the_file_in_front_of_more_is_expanded_too(flags, tmp_path):
  done = run(*flags, command="private.cost", env=os.environ | {"HOME": str(tmp_path)})
  assert str(tmp_path / "no.py") in error(done)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_what_names_a_file_or_folder_is_a_path_with_its_home_expanded(command):
  for name, (kind, said) in described(command)["flags"].items():
    if name not in FILES_AND_MORE and re.search(r"\b(file|folder|path|PEM)\b", f"{name} {said}", re.IGNORECASE):
      assert kind == "path", name


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_lists_the_flags_and_every_field_and_ends_well(command):
  done = run("--help", *NEEDED[command], "--nonsense", command=command.removesuffix(".__main__"))
  assert done.returncode == 0 and done.stderr == ""
  assert max(map(len, done.stdout.splitlines())) <= 120
  for name in described(command)["flags"]:
    assert f"\n  --{name}=" in done.stdout
  assert "--verbosity" not in done.stdout and "--helpfull" in done.stdout
  shown = re.findall(r"^  --config\.(\S+?)=", done.stdout, re.MULTILINE)
  assert shown == (list(fields.FIELDS) if "config" in described(command)["flags"] else [])


def test_help_shows_the_values_of_the_file_and_what_a_field_accepts():
  text = run(CONFIG, "--config.train.seed=7", "--help").stdout
  text = re.sub(r"\s+", " ", text)
  for row in (
    "--config.model.norm=none {layernorm, none} before attention and FFN",
    "--config.train.seed=7 ≥ -2^63, < 2^63",
    "--config.optimizer.b1=0.9 ≥ 0, < 1",
    "--config.model.remat=false {true, false}",
    "--config.eval.max_entropy=none > 0, or none",
    "--config.data.path= free",
  ):
    assert row in text
  assert "--config.model.norm=layernorm" in run("--help").stdout  # without a file: the defaults


def test_json_holds_what_was_printed(tmp_path):
  home = tmp_path / "home"
  home.mkdir()
  done = run(CONFIG, "--json=~/a.json", env=os.environ | {"HOME": str(home)})
  assert done.returncode == 0 and done.stderr == ""
  assert f"{json.loads((home / 'a.json').read_text())['parameters']:,}" in done.stdout
  assert [path.name for path in home.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--config=FILE is missing"),
    (["--config.model.norm=none"], "--config.model.norm changes a config, but --config=FILE is missing"),
    ([CONFIG, "--json=no/such/a.json"], "--json=no/such/a.json cannot be written: no/such does not exist"),
    ([CONFIG, "--json=configs"], "--json=configs cannot be written: it is a folder"),
    ([CONFIG, "--json="], "--json='' names no file or folder"),
    ([CONFIG, "--workdir=~nobody77/x"], "--workdir=~nobody77/x: the home folder ~nobody77 is unknown"),
    ([CONFIG, "train"], "unexpected argument 'train': flags have the form --name=value"),
    ([CONFIG, "--wrkdir=a"], "unknown flag --wrkdir (did you mean 'workdir'?)"),
    ([CONFIG, "--step=x"], "--step=x must be an integer"),
    ([CONFIG, "--step=-1"], "--step=-1 must be a non-negative integer"),
    ([CONFIG, "--step=3"], "--step=3 names a checkpoint to evaluate: add --mode=eval"),
    ([CONFIG, "--mode=evl"], "--mode='evl' is not one of train, eval (did you mean 'eval'?)"),
    ([CONFIG, "--config.model.norm"], "--config.model.norm has no value: write --config.model.norm=VALUE, {layernorm"),
    (["--config"], "Missing value for flag --config"),
    ([CONFIG, "--config.model.norm", "--step=3"], "--config.model.norm has no value"),
    ([CONFIG, "--noconfig.model.norm"], "--noconfig.model.norm is for what is true or false"),
    ([CONFIG, "--process_id=1"], "--process_id=1 is for one of several processes: add --multihost"),
    ([CONFIG, "--multihost", "--coordinator=a:1"], "--coordinator=a:1 needs --num_processes and --process_id"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, message):
  assert message in error(dry("main", *flags))


def test_overrides_are_written_as_absl_takes_them(tmp_path):
  code = DRY.replace("def main():", "def main():\n  print(cli.load_config().to_json())")
  lines = tmp_path / "flags"
  lines.write_text("--config.train.seed=3\n")
  flags = [
    "--config.mesh.data",
    "-1",
    "-config.model.remat",
    "--noconfig.model.tie_embeddings",
    "--config.eval.every=1",
  ]
  done = call("-c", code, "entropy_attn.main", *flags, CONFIG, f"--flagfile={lines}", "--config.eval.every=2")
  config = json.loads(done.stdout.splitlines()[0])
  assert (config["mesh"]["data"], config["model"]["remat"], config["model"]["tie_embeddings"]) == (-1, True, False)
  assert (config["eval"]["every"], config["train"]["seed"]) == (2, 3)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--rtt=nan"], "--rtt=nan must be a finite number"),
    (["--bandwidth=0"], "--bandwidth=0 must be at least 0.001"),
    (["--rtt=fast"], "--rtt=fast must be a number"),
    (["--threads=-2"], "--threads=-2 must be a non-negative integer"),
    (["--length=0"], "--length=0 must be a positive integer"),
    (["--transforms=magic=on"], "transform='magic' is not one of fold, "),
    (["--step=3"], "--step needs --checkpoint"),
  ],
)
def test_a_private_command_is_as_strict(flags, message):
  assert message in error(dry("private.profile", CONFIG, *flags))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ((True, "a:1", 2, None), "needs --process_id"),
    ((True, None, 2, None), "needs --coordinator and --process_id"),
    ((True, "a", 2, 0), "must be host:port"),
    ((True, "a:0", 2, 0), "must be host:port"),
    ((True, "a:70000", 2, 0), "must be host:port"),
    ((True, "a:1", 0, 0), "--num_processes=0 must be at least 1"),
    ((True, "a:1", 2, 2), "--process_id=2 must be from 0 to 1"),
    ((True, "a:1", 2, -1), "--process_id=-1 must be from 0 to 1"),
    ((False, "a:1", 2, 0), "add --multihost"),
  ],
)
def test_settings_of_several_processes_fit_together(settings, message):
  with pytest.raises(UserError, match=message):
    processes.check(*settings)
  processes.check(True, None, None, None)
  processes.check(True, "[::1]:9800", 2, 1)
  processes.check(False, None, None, None)


def test_processes_that_do_not_find_each_other_say_so():
  settings = ["--multihost", "--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1"]
  assert "nobody answered for 1 seconds: start process 0" in error(call("-c", LONELY, CONFIG, *settings))


def test_a_platform_that_is_not_here_is_one_line():
  code = "import jax; from entropy_attn import cli; cli.run(lambda: None, jax.devices)"
  for platform in ("cuda", "nonsense"):
    done = call("-c", code, env=os.environ | {"JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""})
    assert f"JAX_PLATFORMS={platform}: no such device here" in error(done)


def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
  gone = tmp_path / "gone"
  gone.mkdir()
  command = ["sh", "-c", f'rmdir {gone}; exec "$0" "$@"', sys.executable, "-m", "entropy_attn.flops", "--help"]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=gone, env=env, capture_output=True, text=True, check=False)
  assert "the working directory was deleted" in error(done)


def test_without_a_home_the_message_names_what_to_set(monkeypatch):
  monkeypatch.setattr(pathlib.Path, "expanduser", _homeless)
  with pytest.raises(UserError, match="--json=~/a: the home folder ~ is unknown: set HOME"):
    paths.expand("~/a", "--json")
  assert "the home folder is unknown: set HOME, or write paths without ~" in error(call("-c", HOMELESS))


def _homeless(path):
  raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_what_a_terminal_cannot_show_is_replaced_in_children_too(settings):
  done = call("-c", SHOWN, env=os.environ | settings)
  assert (done.returncode, done.stdout, done.stderr) == (0, "??\n?\n", "?\n")


def test_a_reader_that_has_enough_is_no_error():
  reading, writing = os.pipe()
  os.close(reading)
  done = run(CONFIG, stdout=writing, stderr=subprocess.PIPE)
  os.close(writing)
  assert done.returncode == 1 and done.stderr == ""


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_a_closed_stream_is_no_error_and_no_file_takes_its_number(closed, tmp_path):
  files = [tmp_path / "own", tmp_path / "child"]
  code = SILENT.format(*map(str, files))
  done = subprocess.run(["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", code], cwd=ROOT, check=False)
  assert done.returncode == 0
  assert [path.read_text() for path in files] == ["own", "child"]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line_and_the_figures_are_saved_before_they_are_printed(tmp_path):
  with open("/dev/full", "w") as full:
    done = run(CONFIG, f"--json={tmp_path / 'a.json'}", stdout=full, stderr=subprocess.PIPE)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
  assert json.loads((tmp_path / "a.json").read_text())["num_layers"] == 6


def test_files_are_written_whole_or_not_at_all(tmp_path):
  target, link = tmp_path / "a.json", tmp_path / "link.json"
  link.symlink_to(target)
  paths.write_text(link, "first", "--json")
  assert link.is_symlink() and target.read_text() == "first"
  (tmp_path / ".a.json.unfinished").symlink_to("/dev/full")
  with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
    paths.write_text(target, "second", "--json")
  assert target.read_text() == "first"
  paths.write_text(pathlib.Path(os.devnull), "x", "--json")
  with pytest.raises(UserError, match="cannot be made: there is a file of that name"):
    paths.make_folder(target, "--workdir")


def test_every_command_is_listed_where_none_is_named():
  assert {name.removesuffix(".__main__") for name in COMMANDS} == set(listing.COMMANDS)
  done = call("-m", "entropy_attn")
  assert done.returncode == 0 and all(f"python -m entropy_attn.{name} " in done.stdout for name in listing.COMMANDS)
  assert (
    len(done.stdout.splitlines()) < 60 and max(len(line) for line in done.stdout.splitlines() if "/" not in line) <= 100
  )
  assert all(f" {name}," in done.stdout for name in ("codeparrot_ereg", "table3", "free"))
  assert "(did you mean 'flops'?)" in error(call("-m", "entropy_attn", "flps"))


def test_the_one_command_does_what_python_m_does(tmp_path):
  (tmp_path / "sizes.py").write_text("LAYERS = 3")  # which a file of the user's imports from the working directory
  text = "import sizes\nfrom entropy_attn import config\ndef get_config():\n  c = config.codeparrot()\n"
  (tmp_path / "mine.py").write_text(f"{text}  c.model.num_layers = sizes.LAYERS\n  return c\n")
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  for flags in (["--config=mine.py"], ["--config=mine.py:x"], ["--help"], ["--config=mine.py", "--jsn=x"]):
    one = call("-c", SCRIPT, "flops", *flags, cwd=tmp_path, env=environment)
    other = run(*flags, cwd=tmp_path, env=environment)
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
  assert "(did you mean 'private.cost'?)" in error(call("-c", SCRIPT, "private.cst"))


def test_the_package_imports_its_parts_when_they_are_asked_for():
  said = call("-c", LAZY).stdout.split()
  assert said == "False entropy_attn.model entropy_attn.entropy False dot_product_attention True".split()


def test_a_config_file_below_the_home_folder(tmp_path):
  shutil.copy(ROOT / "configs" / "codeparrot_ereg.py", tmp_path / "mine.py")
  done = dry("main", "--config=~/mine.py:quick", env=os.environ | {"HOME": str(tmp_path)})
  assert done.returncode == 0, done.stderr
