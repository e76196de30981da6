"""Trains on a Cloud TPU slice that exists only for this run: create, wait, install, train, delete.

    python launch/tpu.py --name=ereg --zone=us-central1-a --type=v5litepod-16 --version=v2-alpha-tpuv5-lite \\
      --config=configs/codeparrot_ereg.py --workdir=gs://my-bucket/ereg -- --config.train.steps=1000

  --name=NAME         of the slice and of its queued resource
  --zone=ZONE         e.g. us-central1-a
  --type=TYPE         accelerator type, e.g. v5litepod-16
  --version=VERSION   TPU software version, e.g. v2-alpha-tpuv5-lite
  --config=FILE       a config file of this repository
  --workdir=FOLDER    gs://BUCKET/FOLDER, which every worker mounts; or, for a slice of one worker, a relative path,
                      which is copied back here before the slice is deleted
  --project=PROJECT   default: gcloud's own
  --spot              a cheaper slice that may be taken away at any time
  --keep              leave the slice running at the end: it goes on costing money
  --dry-run           print the commands, in order, and run none
  --poll=SECONDS      between two looks at a slice that is not there yet; default 15

What follows -- goes to entropy_attn.main on every worker. Needs gcloud, logged in, and a clean git checkout: the
workers get its current commit, pushed or not. The standard library is enough to run this file.
"""

from collections.abc import Sequence
import dataclasses
import getopt
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_REQUIRED = ("name", "zone", "type", "version", "config", "workdir")
_OPTIONAL = {"project": "", "poll": "15"}
_SWITCHES = ("spot", "keep", "dry-run", "help")
_BUNDLE = "entropy_attn.bundle"  # the commit with its history, as one file
_ATTEMPTS = 5  # of what the network may spoil: a new worker refuses ssh for its first seconds


class BadInput(Exception):
  """One line for the user; exit code 2."""


class Failed(Exception):
  """One line for the user; exit code 1."""


@dataclasses.dataclass(frozen=True)
class Commands:
  """Every command of a launch, as lists of arguments, from the flags."""

  flags: dict[str, str]
  extra: Sequence[str]
  bundle: pathlib.Path

  @property
  def pack(self) -> list[str]:
    return ["git", "-C", str(_ROOT), "bundle", "create", "--quiet", str(self.bundle), "HEAD"]

  @property
  def names(self) -> list[str]:
    """Prints the queued resources that exist in the zone."""
    return self._gcloud("queued-resources", "list", "--format=value(name)")

  @property
  def create(self) -> list[str]:
    f = self.flags
    options = [f"--node-id={f['name']}", f"--accelerator-type={f['type']}", f"--runtime-version={f['version']}"]
    return self._gcloud("queued-resources", "create", f["name"], *options, *(["--spot"] if "spot" in f else []))

  @property
  def state(self) -> list[str]:
    return self._gcloud("queued-resources", "describe", self.flags["name"], "--format=value(state.state)")

  @property
  def upload(self) -> list[str]:
    return self._gcloud("tpu-vm", "scp", str(self.bundle), f"{self.flags['name']}:{_BUNDLE}", "--worker=all")

  @property
  def install(self) -> list[str]:
    # uv brings a Python of 3.11 or newer: that of the TPU software versions is older.
    steps = [
      "set -e",
      "rm -rf entropy_attn",
      f"git clone --quiet {_BUNDLE} entropy_attn",
      "cd entropy_attn",
      "python3 -m pip install --quiet --user uv",
      "python3 -m uv venv --quiet --python '>=3.11' .venv",
      "python3 -m uv pip install --quiet --python .venv/bin/python -r requirements-tpu.txt",
    ]
    if bucket := _bucket(self.flags["workdir"]):
      # Orbax renames folders, and each worker must see at once what another has written.
      mount = f"gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 {bucket} ~/bucket"
      key, source = "/usr/share/keyrings/cloud.google.asc", "https://packages.cloud.google.com/apt"
      steps += [
        f"curl -fsS {source}/doc/apt-key.gpg | sudo tee {key} > /dev/null",
        f'echo "deb [signed-by={key}] {source} gcsfuse-$(lsb_release -cs) main" '
        "| sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null",
        "sudo apt-get -qq update",
        "sudo apt-get -qq install -y gcsfuse",
        "mkdir -p ~/bucket",
        f"mountpoint -q ~/bucket || {mount}",
      ]
    return self._ssh("; ".join(steps))

  @property
  def train(self) -> list[str]:
    arguments = [f"--config={self.flags['config']}", *self.extra]
    # JAX_PLATFORMS: without it a worker that cannot reach its chips would train on its CPU.
    return self._ssh(
      "cd entropy_attn && JAX_PLATFORMS=tpu,cpu .venv/bin/python -m entropy_attn.main --multihost "
      f"--workdir={self._remote_workdir()} {shlex.join(arguments)}"
    )

  @property
  def download(self) -> list[str] | None:
    """Copies the run back; None where it lies in a bucket."""
    workdir = self.flags["workdir"]
    if _bucket(workdir):
      return None
    source = f"{self.flags['name']}:entropy_attn/{workdir}"
    return self._gcloud("tpu-vm", "scp", "--recurse", source, str(pathlib.Path(workdir).parent), "--worker=0")

  @property
  def delete(self) -> list[str]:
    return self._gcloud("queued-resources", "delete", self.flags["name"], "--force", "--quiet")

  def in_order(self) -> list[list[str]]:
    commands = [self.pack, self.names, self.create, self.state, self.upload, self.install, self.train]
    commands += [self.download] if self.download else []
    return commands if "keep" in self.flags else [*commands, self.delete]

  def _remote_workdir(self) -> str:
    workdir = self.flags["workdir"]
    if not _bucket(workdir):
      return shlex.quote(workdir)
    return "$HOME/bucket/" + shlex.quote(workdir.removeprefix("gs://").partition("/")[2])

  def _ssh(self, command: str) -> list[str]:
    return self._gcloud("tpu-vm", "ssh", self.flags["name"], "--worker=all", f"--command={command}")

  def _gcloud(self, *arguments: str) -> list[str]:
    where = [f"--zone={self.flags['zone']}"]
    where += [f"--project={self.flags['project']}"] if self.flags["project"] else []
    return ["gcloud", "compute", "tpus", *arguments, *where]


def main(argv: Sequence[str]) -> int:
  """Runs a launch; returns the exit code."""
  try:
    flags, extra = parse(argv)
    if "help" in flags:
      print(__doc__)
      return 0
    if "dry-run" in flags:
      for command in Commands(flags, extra, pathlib.Path(tempfile.gettempdir(), _BUNDLE)).in_order():
        print(shlex.join(command))
      return 0
    check_machine()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the slice is deleted after either
    with tempfile.TemporaryDirectory() as folder:
      launch(Commands(flags, extra, pathlib.Path(folder, _BUNDLE)))
  except BadInput as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except Failed as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("error: interrupted", file=sys.stderr)
    return 130
  return 0


def parse(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
  """(flags by name, what follows --).

  Raises:
    BadInput: for flags that are missing, unknown, or cannot work together.
  """
  argv = list(argv)
  end = argv.index("--") if "--" in argv else len(argv)
  own, extra = argv[:end], argv[end + 1 :]
  try:
    found, rest = getopt.getopt(own, "", [f"{name}=" for name in (*_REQUIRED, *_OPTIONAL)] + list(_SWITCHES))
  except getopt.GetoptError as error:
    raise BadInput(f"{error.msg}; see --help") from error
  if rest:
    raise BadInput(f"unexpected argument {rest[0]!r}: flags of entropy_attn.main go after --")
  flags = _OPTIONAL | {name.removeprefix("--"): value for name, value in found}
  if "help" in flags:
    return flags, extra
  missing = [f"--{name}" for name in _REQUIRED if not flags.get(name)]
  if missing:
    raise BadInput(f"{', '.join(missing)} missing; see --help")
  if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", flags["name"]):
    raise BadInput(f"--name={flags['name']}: lower-case letters, digits and dashes, a letter first")
  if not re.fullmatch(r"\d+(\.\d+)?", flags["poll"]):
    raise BadInput(f"--poll={flags['poll']} is no number of seconds")
  config = pathlib.Path(flags["config"].partition(":")[0])
  if config.is_absolute() or not (_ROOT / config).is_file():
    raise BadInput(f"--config={flags['config']}: {_ROOT} holds no such file")
  _check_workdir(flags["workdir"], flags["type"])
  return flags, extra


def check_machine() -> None:
  """Raises BadInput without gcloud or git, or where the commit does not hold what the checkout does."""
  for tool in ("git", "gcloud"):
    if not shutil.which(tool):
      raise BadInput(f"{tool} is not on the PATH: install it first")
  status = subprocess.run(["git", "-C", str(_ROOT), "status", "--porcelain"], capture_output=True, text=True)
  if status.returncode:
    raise BadInput(f"{_ROOT} is no git checkout: the workers get its current commit")
  if status.stdout:
    raise BadInput(f"uncommitted changes ({status.stdout.split()[1]}, …): the workers get the commit, so commit first")


def launch(commands: Commands) -> None:
  """Creates the slice, trains on it, and deletes it, whatever happens in between.

  Raises:
    BadInput: if the name is taken.
    Failed: where a command failed.
    KeyboardInterrupt: after Ctrl-C or SIGTERM; the slice is deleted by then.
  """
  flags = commands.flags
  name = flags["name"]
  _run(commands.pack)
  # Only a name that was free is ours to delete.
  if any(line.rpartition("/")[2] == name for line in _output(commands.names).splitlines()):
    raise BadInput(f"--name={name} exists in {flags['zone']}: choose another, or {shlex.join(commands.delete)}")
  lost = False
  try:
    _run(commands.create)
    wait_until_active(commands, float(flags["poll"]))
    _retry(commands.upload, float(flags["poll"]))
    _run(commands.install)
    try:
      _run(commands.train)
    except (Failed, KeyboardInterrupt):
      _download(commands)  # what was saved until then
      raise
    lost = not _download(commands)
  finally:
    # A second Ctrl-C must not leave a slice behind that costs money; gcloud inherits this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "keep" in flags or lost:
      _say(f"the slice is left running; it costs money until you run\n  {shlex.join(commands.delete)}")
    elif subprocess.run(_shown(commands.delete)).returncode:
      _say(f"the slice may still be there and cost money: run\n  {shlex.join(commands.delete)}")
  if lost:
    raise Failed(f"the run could not be copied back: it lies on the slice alone; {shlex.join(commands.download)}")


def wait_until_active(commands: Commands, poll: float) -> None:
  """Shows the state of the queued resource until it is ACTIVE.

  Raises:
    Failed: if it never will be.
  """
  started, shown, errors = time.monotonic(), None, 0
  while True:
    done = subprocess.run(commands.state, stdout=subprocess.PIPE, text=True)
    state = done.stdout.strip() or "UNKNOWN"
    errors = errors + 1 if done.returncode else 0
    if errors == _ATTEMPTS:
      raise Failed(f"{_ATTEMPTS} looks at the slice's state failed in a row")
    if state != shown:
      _say(f"{commands.flags['name']}: {state} after {(time.monotonic() - started) / 60:.1f} min")
      shown = state
    if state == "ACTIVE":
      return
    if state in ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING"):
      raise Failed(f"the slice is {state}: the zone may lack quota or capacity for --type={commands.flags['type']}")
    time.sleep(poll)


def _check_workdir(workdir: str, accelerator: str) -> None:
  if _bucket(workdir) and re.fullmatch(r"gs://[a-z0-9._-]+/[\w./-]*\w", workdir):
    return
  if ":" in workdir or not re.fullmatch(r"(?!/)(?!.*\.\.)[\w./-]*\w", workdir):
    raise BadInput(f"--workdir={workdir} is neither gs://BUCKET/FOLDER nor a relative path")
  # Up to eight chips or cores hang on one worker, in every generation.
  chips = re.search(r"-(\d+)$", accelerator)
  if not chips or int(chips[1]) > 8:
    raise BadInput(
      f"--workdir={workdir} is on one worker's disk and --type={accelerator} has several workers, which must see one "
      "folder: use gs://BUCKET/FOLDER"
    )


def _bucket(workdir: str) -> str:
  return workdir.removeprefix("gs://").partition("/")[0] if workdir.startswith("gs://") else ""


def _download(commands: Commands) -> bool:
  """Whether the run is safe without the slice."""
  if commands.download is None:
    return True
  pathlib.Path(commands.flags["workdir"]).parent.mkdir(parents=True, exist_ok=True)
  try:
    _run(commands.download)
  except (Failed, KeyboardInterrupt):
    return False
  return True


def _retry(command: list[str], pause: float) -> None:
  for _ in range(_ATTEMPTS - 1):
    try:
      return _run(command)
    except Failed as error:
      _say(f"{error}; trying again")
    time.sleep(pause)
  _run(command)


def _output(command: list[str]) -> str:
  done = subprocess.run(_shown(command), stdout=subprocess.PIPE, text=True)
  if done.returncode:
    raise Failed(f"exit code {done.returncode} of {_short(command)}")
  return done.stdout


def _run(command: list[str]) -> None:
  code = subprocess.run(_shown(command)).returncode
  if code:
    raise Failed(f"exit code {code} of {_short(command)}")


def _shown(command: list[str]) -> list[str]:
  _say(f"+ {shlex.join(command)}")
  return command


def _short(command: list[str]) -> str:
  return " ".join(command[:5])


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
