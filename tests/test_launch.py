"""The TPU launcher against a gcloud that logs its calls and fails on request."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from waiting import PATIENCE, until

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = {
  "name": "ereg", "zone": "us-central1-a", "type": "v5litepod-16", "version": "v2-alpha-tpuv5-lite",
  "config": "configs/quickstart.py", "workdir": "gs://a-bucket/runs/ereg", "poll": "0.05",
}  # fmt: skip
# Logs each call as one JSON line; $FAIL names the step that fails, $HANG the one that never ends.
GCLOUD = """#!{python}
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
with open(os.environ["LOG"], "a") as log:
  log.write(json.dumps(arguments) + "\\n")
step = next(step for step in ("list", "create", "describe", "delete", "scp", "ssh") if step in arguments)
if step == "ssh":
  step = "train" if "entropy_attn.main" in " ".join(arguments) else "install"
elif step == "scp":
  step = "upload" if "--worker=all" in arguments else "download"
if step == "list":
  print(os.environ.get("EXISTING", "projects/p/locations/z/queuedResources/another"))
if step == "describe":
  states = ["WAITING_FOR_RESOURCES", "PROVISIONING", os.environ.get("FINAL_STATE", "ACTIVE")]
  looks = sum('"describe"' in line for line in open(os.environ["LOG"]))
  print(states[min(looks, len(states)) - 1])
if step == os.environ.get("HANG"):
  time.sleep(3600)
if step == "download" and not os.environ.get("FAIL"):
  target = pathlib.Path(arguments[6], "one")
  target.mkdir(parents=True)
  (target / "summary.json").write_text("{{}}")
sys.exit(step in os.environ.get("FAIL", "").split(","))
"""


@pytest.fixture
def checkout(tmp_path):
  """A clean git checkout of what the launcher needs."""
  root = tmp_path / "checkout"
  for name in ("launch/tpu.py", "configs/quickstart.py", "requirements-tpu.txt"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / name, root / name)
  identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
  for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "one"]):
    subprocess.run(["git", *arguments], cwd=root, check=True)
  return root


@pytest.fixture
def environment(tmp_path):
  """A PATH on which gcloud is the one above, and git the real one."""
  folder = tmp_path / "bin"
  folder.mkdir()
  (folder / "gcloud").write_text(GCLOUD.format(python=sys.executable))
  (folder / "gcloud").chmod(0o755)
  (folder / "git").symlink_to(shutil.which("git"))
  return {"PATH": str(folder), "HOME": str(tmp_path), "LOG": str(tmp_path / "log")}


def command(checkout, *switches, without=(), **flags):
  given = [f"--{name}={value}" for name, value in (FLAGS | flags).items() if name not in without]
  return [sys.executable, str(checkout / "launch" / "tpu.py"), *given, *switches]


def launch(checkout, environment, *switches, variables=None, **kwargs):
  arguments = command(checkout, *switches, **kwargs)
  env = environment | (variables or {})
  return subprocess.run(arguments, cwd=checkout, env=env, capture_output=True, text=True, timeout=PATIENCE)


def steps(environment):
  """The calls that gcloud saw, looks at the state merged to one, each named by its verb or by what it runs."""
  names = []
  for line in pathlib.Path(environment["LOG"]).read_text().splitlines():
    arguments = json.loads(line)
    name = next(verb for verb in ("list", "create", "describe", "delete", "scp", "ssh") if verb in arguments)
    if name == "ssh":
      name = "train" if "entropy_attn.main" in " ".join(arguments) else "install"
    if name == "scp":
      name = "upload" if "--worker=all" in arguments else "download"
    if names[-1:] != [name]:
      names.append(name)
  return names


def test_dry_run_prints_the_commands_in_order_and_runs_none(checkout, environment):
  switches = ("--spot", "--project=mine", "--dry-run", "--", "--config.train.steps=7", "--config.data.path=a b")
  done = launch(checkout, environment, *switches)
  assert done.returncode == 0, done.stderr
  assert not pathlib.Path(environment["LOG"]).exists()
  pack, listing, create, state, upload, install, train, delete = map(shlex.split, done.stdout.splitlines())
  assert pack[0] == "git"
  for gcloud in (listing, create, state, upload, install, train, delete):
    assert gcloud[:3] == ["gcloud", "compute", "tpus"]
    assert {"--zone=us-central1-a", "--project=mine"} <= set(gcloud)
  assert create[3:6] == ["queued-resources", "create", "ereg"]
  shape = {"--node-id=ereg", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"}
  assert shape <= set(create)
  assert state[3:5] == ["queued-resources", "describe"]
  assert upload[3:5] == ["tpu-vm", "scp"] and "--worker=all" in upload
  assert "requirements-tpu.txt" in install[-3] and "gcsfuse" in install[-3]
  assert train[3:6] == ["tpu-vm", "ssh", "ereg"] and "--worker=all" in train
  (remote,) = (argument for argument in train if argument.startswith("--command="))
  words = shlex.split(remote)
  assert words[words.index("-m") + 1] == "entropy_attn.main"
  assert words[-5:] == [
    "--multihost", "--workdir=$HOME/bucket/runs/ereg", "--config=configs/quickstart.py", "--config.train.steps=7",
    "--config.data.path=a b",
  ]  # fmt: skip
  assert delete[3:6] == ["queued-resources", "delete", "ereg"] and {"--force", "--quiet"} <= set(delete)


def test_dry_run_with_keep_does_not_delete(checkout, environment):
  done = launch(checkout, environment, "--dry-run", "--keep")
  assert done.returncode == 0
  assert " delete " not in done.stdout


def test_a_launch_waits_trains_and_deletes(checkout, environment):
  done = launch(checkout, environment)
  assert done.returncode == 0, done.stderr
  assert steps(environment) == ["list", "create", "describe", "upload", "install", "train", "delete"]
  progress = [done.stderr.index(state) for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")]
  assert progress == sorted(progress)


def test_the_run_of_one_worker_is_copied_back_before_the_slice_goes(checkout, environment):
  done = launch(checkout, environment, type="v5litepod-8", workdir="runs/one")
  assert done.returncode == 0, done.stderr
  assert steps(environment)[-3:] == ["train", "download", "delete"]
  assert (checkout / "runs" / "one" / "summary.json").exists()


@pytest.mark.parametrize("step", ["create", "install", "train"])
def test_the_slice_is_deleted_after_a_failure(checkout, environment, step):
  done = launch(checkout, environment, variables={"FAIL": step})
  assert done.returncode == 1
  assert steps(environment)[-2:] == [step, "delete"]
  assert done.stderr.splitlines()[-1].startswith("error: exit code 1 of gcloud compute tpus")
  assert "Traceback" not in done.stderr


def test_the_slice_is_deleted_where_it_never_becomes_active(checkout, environment):
  done = launch(checkout, environment, variables={"FINAL_STATE": "FAILED"})
  assert done.returncode == 1
  assert steps(environment) == ["list", "create", "describe", "delete"]
  assert "FAILED" in done.stderr.splitlines()[-1]


def test_an_upload_that_fails_is_tried_again(checkout, environment):
  done = launch(checkout, environment, variables={"FAIL": "upload"})
  assert done.returncode == 1
  assert pathlib.Path(environment["LOG"]).read_text().count('"scp"') == 5
  assert steps(environment)[-2:] == ["upload", "delete"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["describe", "train"])
def test_the_slice_is_deleted_after_ctrl_c(checkout, environment, number, step):
  env = environment | {"HANG": step}
  process = subprocess.Popen(command(checkout), cwd=checkout, env=env, stderr=subprocess.PIPE, text=True)
  until(lambda: os.path.exists(environment["LOG"]) and steps(environment)[-1:] == [step], process)
  process.send_signal(number)
  _, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == 130
  assert steps(environment)[-2:] == [step, "delete"]
  assert err.splitlines()[-1] == "error: interrupted"


def test_keep_leaves_the_slice_and_says_how_to_delete_it(checkout, environment):
  for variables in ({}, {"FAIL": "train"}):
    done = launch(checkout, environment, "--keep", variables=variables)
    assert "delete" not in steps(environment)
    assert "queued-resources delete ereg" in done.stderr


def test_a_finished_run_that_cannot_be_copied_back_keeps_its_slice(checkout, environment):
  done = launch(checkout, environment, type="v4-8", workdir="runs/one", variables={"FAIL": "download"})
  assert done.returncode == 1
  assert steps(environment)[-2:] == ["train", "download"]
  assert "could not be copied back" in done.stderr.splitlines()[-1]


def test_a_failed_run_is_copied_back_as_far_as_it_went(checkout, environment):
  done = launch(checkout, environment, type="v4-8", workdir="runs/one", variables={"FAIL": "train"})
  assert done.returncode == 1
  assert steps(environment)[-3:] == ["train", "download", "delete"]


def test_a_slice_that_exists_is_left_alone(checkout, environment):
  done = launch(checkout, environment, variables={"EXISTING": "projects/p/locations/z/queuedResources/ereg"})
  assert done.returncode == 2
  assert steps(environment) == ["list"]
  assert "--name=ereg exists" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
  "kwargs, switches, said",
  [
    ({"without": ("zone", "type")}, (), "--zone, --type missing"),
    ({}, ("--preemptible",), "--preemptible not recognized"),
    ({}, ("--spot=yes",), "--spot must not have an argument"),
    ({}, ("spot",), "unexpected argument 'spot'"),
    ({"config": "configs/none.py"}, (), "configs/none.py"),
    ({"config": "/etc/hostname"}, (), "/etc/hostname"),
    ({"name": "My Slice"}, (), "--name=My Slice"),
    ({"poll": "soon"}, (), "--poll=soon"),
    ({"workdir": "runs/one"}, (), "several workers"),
    ({"workdir": "/runs/one", "type": "v4-8"}, (), "neither gs://BUCKET/FOLDER nor a relative path"),
    ({"workdir": "gs://bucket"}, (), "neither gs://BUCKET/FOLDER nor a relative path"),
    ({"workdir": "runs/$(id)", "type": "v4-8"}, (), "neither gs://BUCKET/FOLDER nor a relative path"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(checkout, environment, kwargs, switches, said):
  done = launch(checkout, environment, *switches, **kwargs)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and said in line
  assert not pathlib.Path(environment["LOG"]).exists()


def test_a_machine_without_gcloud_and_a_dirty_checkout_are_refused(checkout, environment):
  (checkout / "configs" / "new.py").write_text("")
  done = launch(checkout, environment)
  assert done.returncode == 2
  assert "uncommitted changes (configs/new.py" in done.stderr
  pathlib.Path(environment["PATH"], "gcloud").unlink()
  done = launch(checkout, environment)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "gcloud is not on the PATH" in line


def test_the_bundle_holds_the_commit_even_unpushed(checkout, environment, tmp_path):
  """What the first command packs is what `git clone` on a worker unpacks."""
  done = launch(checkout, environment, "--dry-run", variables={"TMPDIR": str(tmp_path)})
  pack = shlex.split(done.stdout.splitlines()[0])
  subprocess.run(pack, check=True)
  subprocess.run(["git", "clone", "--quiet", pack[-2], "worker"], cwd=tmp_path, check=True)
  commits = [
    subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    for root in (checkout, tmp_path / "worker")
  ]
  assert commits[0] == commits[1]
  assert (tmp_path / "worker" / "requirements-tpu.txt").exists()
