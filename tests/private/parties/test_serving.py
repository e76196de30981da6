"""A server and a client in processes of their own, over TCP: what they generate, and what becomes of one when the other
dies, stalls, or is not what it seems.
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from command_line import ROOT, environment
import numpy as np
from private.commands import LINEAR, fields, needs_engine, run
import pytest
from tiny_runs import TINY
import trustme
from waiting import PATIENCE

from entropy_attn.private.program.prepare import Exact
from entropy_attn.private.program.spec import transforms_for
from entropy_attn.run import pretrained

pytestmark = [pytest.mark.slow, needs_engine]
PATIENT = "--timeout=3600"  # whatever else the machine does: only an end that is seen ends anything


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("served") / "run"
  size = {"model.num_layers": 4, "model.context_length": 16}
  run("main", "--config=configs/quickstart.py", f"--workdir={folder}", *fields(TINY | LINEAR | size | corpus))
  return folder


def start(module, *flags, tmpdir=None):
  command = [sys.executable, "-u", "-m", f"entropy_attn.private.{module}", *map(str, flags)]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment() | ({"TMPDIR": str(tmpdir)} if tmpdir else {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def wait_for(process, pattern):
  """Reads standard error until a line matches; returns all lines."""
  lines, stuck = [], threading.Timer(PATIENCE, end, [process])
  stuck.start()
  try:
    for line in iter(process.stderr.readline, ""):
      lines.append(line)
      if re.search(pattern, line):
        return lines
  finally:
    stuck.cancel()
  raise AssertionError(f"no {pattern!r} in {''.join(lines)}")


def end(process):
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()


@pytest.fixture
def processes():
  started = []
  yield started
  for process in started:
    end(process)


def serve(processes, checkpoint, *flags, tmpdir=None):
  process = start("serve", f"--checkpoint={checkpoint}", "--port=0", "--threads=1", PATIENT, *flags, tmpdir=tmpdir)
  processes.append(process)
  port = re.search(r"serving on 127.0.0.1:(\d+)", wait_for(process, "serving on")[-1])[1]
  return process, int(port)


def ask(processes, port, *flags):
  process = start("generate", f"--server=127.0.0.1:{port}", "--threads=1", PATIENT, *flags)
  processes.append(process)
  return process


def test_generated_tokens_are_the_models_own(processes, checkpoint, tmp_path):
  _, port = serve(processes, checkpoint, "--reveal=top_k", "--top_k=20")
  path = tmp_path / "out.json"
  client = ask(processes, port, "--prompt=import os", "--tokens=4", f"--json={path}")
  out, err = client.communicate(timeout=PATIENCE)
  assert client.returncode == 0, err
  found = json.loads(path.read_text())
  model = pretrained.load(checkpoint)
  exact = Exact(model.variables, model.config.model, transforms_for(model.config.model))
  ids = list(found["prompt_ids"])
  for token in found["ids"]:
    assert token == int(np.argmax(exact.logits(np.array(ids))[-1]))
    ids.append(token)
  assert out.strip("\n") == found["text"]
  assert len(found["spent"]) == 4 and found["spent"][0]["bytes"] > found["spent"][1]["bytes"] > 0
  assert "private: layer 3" in err and "token 3:" in err
  # The server goes on for the next client, and draws differ by seed alone.
  drawn = []
  for seed in (1, 1, 2):
    client = ask(
      processes, port, "--prompt_ids=5,6,7", "--tokens=3", "--temperature=5", f"--seed={seed}", f"--json={path}"
    )
    assert client.wait(timeout=PATIENCE) == 0
    drawn.append(json.loads(path.read_text())["ids"])
  assert drawn[0] == drawn[1] != drawn[2]


def test_the_text_is_that_of_generate_in_the_clear(processes, checkpoint, tmp_path):
  """The likeliest tokens, and drawn ones by the same seed: fixed point's error changes neither here."""
  _, port = serve(processes, checkpoint, "--reveal=top_k", "--top_k=20")
  for flags in ([], ["--temperature=1.5", "--top_k=20", "--top_p=0.9", "--seed=3"], ["--stop=e"]):
    asked, found = ["--prompt=import os", "--tokens=5", *flags], {}
    for name in ("private.generate", "generate"):
      path = tmp_path / f"{name}.json"
      where = [f"--server=127.0.0.1:{port}", "--threads=1", PATIENT]
      where = where if name == "private.generate" else [f"--checkpoint={checkpoint}"]
      out, _ = run(name, *where, *asked, f"--json={path}")
      found[name] = json.loads(path.read_text())
      assert out == found[name]["text"] + "\n"
    clear, private = found["generate"], found["private.generate"]
    assert all(clear[key] == private[key] for key in ("prompt_ids", "ids", "text"))
  run("private.generate", f"--server=127.0.0.1:{port}", "--prompt=x", "--temperature=1", "--top_k=21", expect=2)


def test_material_of_a_session_before_is_used_once_by_both(processes, checkpoint, tmp_path):
  served, asked = tmp_path / "served", tmp_path / "asked"
  _, port = serve(processes, checkpoint, f"--material={served}")
  sizes = ["--length=6", "--tokens=2", f"--material={asked}"]
  server = [f"--server=127.0.0.1:{port}", "--threads=1", PATIENT]
  out, _ = run("private.prepare", *server, *sizes)
  assert "a prompt of 6 tokens and 2 answers: " in out
  assert "1 sets for such prompts wait already" in run("private.prepare", *server, *sizes)[0]
  assert [len(list(folder.glob("*.material"))) for folder in (served, asked)] == [2, 2]
  told = []
  for i in range(2):  # the second time nothing is left
    path = tmp_path / f"{i}.json"
    ids = "--prompt_ids=3,1,4,1"
    run("private.generate", *server, ids, "--tokens=2", f"--material={asked}", f"--json={path}")
    told.append(json.loads(path.read_text()))
  assert told[0]["ids"] == told[1]["ids"]
  assert [[spent["prepared"] for spent in found["spent"]] for found in told] == [[True, True], [False, False]]
  assert told[0]["spent"][1]["bytes"] < 0.6 * told[1]["spent"][1]["bytes"]
  for folder in (served, asked):
    assert not list(folder.glob("*.material")) and len(list((folder / "used").iterdir())) == 2
  client = ask(processes, port, "--prompt_ids=1", "--tokens=1")  # who keeps none is served as well
  assert client.wait(PATIENCE) == 0


def test_mutual_tls(processes, checkpoint, tmp_path):
  authority, foreign = trustme.CA(), trustme.CA()
  paths = {}
  for name, ca in (("good", authority), ("bad", foreign), ("other", authority)):
    certificate = ca.issue_cert(f"{name}.example")
    paths[name] = [tmp_path / f"{name}-{part}.pem" for part in ("cert", "key")]
    certificate.cert_chain_pems[0].write_to_path(paths[name][0])
    certificate.private_key_pem.write_to_path(paths[name][1])
  authority.cert_pem.write_to_path(tmp_path / "ca.pem")
  flags = {
    name: [f"--tls_cert={cert}", f"--tls_key={key}", f"--tls_ca={tmp_path / 'ca.pem'}"]
    for name, (cert, key) in paths.items()
  }
  _, port = serve(processes, checkpoint, *flags["good"], "--tls_peer=good.example,nobody.example")
  asked = ["--prompt_ids=5", "--tokens=1"]
  wrong = {
    "the server is lost: the connection broke .*unknown": flags["bad"],
    "the server is lost": [],
    "the other party is good.example .* which --tls_peer does not name": [*flags["good"], "--tls_peer=other.example"],
    "the server is lost: its --tls_peer does not name the certificate of this party": flags["other"],
  }
  for message, given in wrong.items():
    client = ask(processes, port, *asked, *given)
    _, err = client.communicate(timeout=PATIENCE)
    assert client.returncode == 2 and err.count("error:") == 1 and re.search(message, err), err
  named = [*flags["good"], "--tls_peer=good.example"]
  assert ask(processes, port, *asked, *named).wait(timeout=PATIENCE) == 0


MOMENTS = ["setup", "embedding", "layer 0", "layer 2", "vocabulary"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_party_that_is_killed_ends_the_other_in_one_line(processes, checkpoint, victim, moment):
  server, port = serve(processes, checkpoint, "--once")
  client = ask(processes, port, "--prompt_ids=5,6,7,8", "--tokens=6")
  wait_for(client, f"private: {moment}")
  killed, other = (server, client) if victim == "server" else (client, server)
  os.killpg(killed.pid, signal.SIGKILL)
  _, err = other.communicate(timeout=PATIENCE)  # long before the timeout, and the patience of the connection
  assert other.returncode == 2
  errors = [line for line in err.splitlines() if line.startswith("error:")]
  assert len(errors) == 1 and f"the {victim} is lost" in errors[0], err
  assert "Traceback" not in err


@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_party_that_stalls_is_given_up_in_the_time_that_was_said(processes, checkpoint, victim):
  said = {"server": [], "client": []}
  said["client" if victim == "server" else "server"] = ["--timeout=15"]
  server, port = serve(processes, checkpoint, "--once", *said["server"])
  client = ask(processes, port, "--prompt_ids=5,6,7,8", "--tokens=6", *said["client"])
  wait_for(client, "private: layer 1")
  stalled, other = (server, client) if victim == "server" else (client, server)
  os.killpg(stalled.pid, signal.SIGSTOP)
  stopped = time.monotonic()
  _, err = other.communicate(timeout=PATIENCE)
  assert time.monotonic() - stopped > 5
  assert other.returncode == 2 and f"the {victim} is lost: no sign of life for 15 s" in err


def test_a_server_outlives_a_lost_client(processes, checkpoint):
  server, port = serve(processes, checkpoint)
  client = ask(processes, port, "--prompt_ids=5,6,7,8", "--tokens=6")
  wait_for(client, "private: layer 1")
  end(client)
  wait_for(server, "not served to the end")
  assert ask(processes, port, "--prompt_ids=5", "--tokens=1").wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_server_leaves_no_file_and_no_process_however_it_ends(processes, checkpoint, ending, tmp_path):
  tmp_path = tmp_path / "tmp"
  tmp_path.mkdir()
  server, port = serve(processes, checkpoint, tmpdir=tmp_path)
  client = ask(processes, port, "--prompt_ids=5,6,7,8", "--tokens=6")
  wait_for(client, "private: layer 1")
  assert list(tmp_path.iterdir()) == []  # while it serves, too
  os.kill(server.pid, ending)
  _, err = server.communicate(timeout=PATIENCE)  # its child has the same standard error: this waits for both
  assert list(tmp_path.iterdir()) == [] and "Traceback" not in err
  if ending != signal.SIGKILL:
    assert server.returncode == 2 and f"error: stopped by {ending.name}" in err
  _, err = client.communicate(timeout=PATIENCE)
  assert client.returncode == 2 and "the server is lost" in err


def test_a_server_learns_nothing_of_a_prompt_that_is_refused(processes, checkpoint):
  server, port = serve(processes, checkpoint)
  said = []
  for flags in (["--prompt_ids=5,9999"], ["--prompt_ids=" + ",".join(["7"] * 20)], ["--prompt=" + "secret " * 40]):
    assert ask(processes, port, "--tokens=1", *flags).wait(timeout=PATIENCE) == 2
    said.append([line for line in wait_for(server, "served$") if "connected" not in line])
  assert len({re.sub("[0-9]+", "", "".join(lines)) for lines in said}) == 1
  text = "".join(line for lines in said for line in lines)
  assert not re.search("9999|token|secret|positions|20|error", re.sub(":[0-9]+ ", " ", text)), text


def test_who_only_lives_does_not_hold_the_server_and_who_waits_is_told(processes, checkpoint):
  server, port = serve(processes, checkpoint, "--timeout=3")
  beat = struct.pack("!4sBHQII", b"EAp1", 2, 0, 0, 0, 0)
  idle, left = socket.create_connection(("127.0.0.1", port)), threading.Event()

  def live():
    while not left.wait(0.5):
      try:
        idle.sendall(beat)
      except OSError:
        return

  idle.sendall(b"EAp1 knock\n")
  threading.Thread(target=live, daemon=True).start()
  wait_for(server, "connected")
  client = ask(processes, port, "--prompt_ids=5", "--tokens=1", "--timeout=30")
  _, err = client.communicate(timeout=PATIENCE)
  left.set()
  assert client.returncode == 0 and "the server is busy, 1 before this one" in err, err
  assert any("has not said what was awaited for 3 s" in line for line in wait_for(server, "not served to the end"))


def test_a_client_has_so_many_answers(processes, checkpoint, tmp_path):
  path = tmp_path / "quota.json"
  server, port = serve(processes, checkpoint, "--quota=3", f"--quota_file={path}", "--max_session=600")
  assert ask(processes, port, "--prompt_ids=5", "--tokens=2").wait(timeout=PATIENCE) == 0
  _, err = ask(processes, port, "--prompt_ids=5", "--tokens=2").communicate(timeout=PATIENCE)
  assert "error: the server has 1 answer(s) left for this client now, fewer than --tokens=2" in err
  ((_, hours),) = json.loads(path.read_text()).items()
  assert sum(hours.values()) == 2
  end(server)


@pytest.mark.parametrize("seconds", [1, 2, 3])
def test_a_session_that_takes_too_long_ends_wherever_it_is(processes, checkpoint, seconds):
  server, port = serve(processes, checkpoint, f"--max_session={seconds}")
  for length in (4, 6, 8):  # the engine is at another place each time, in its own threads' too
    client = ask(processes, port, f"--prompt_ids={','.join('5' * length)}", "--tokens=8")
    _, err = client.communicate(timeout=PATIENCE)
    assert client.returncode == 2 and "the session has taken as long as its --max_session allows" in err, err
    assert "as long as --max_session allows" in "".join(wait_for(server, "not served to the end"))


def test_garbage_ends_a_session_and_no_more(processes, checkpoint):
  server, port = serve(processes, checkpoint)
  with socket.create_connection(("127.0.0.1", port)) as sock:
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    lines = wait_for(server, "not served to the end")
  assert any("what is no message of this program" in line for line in lines)
  assert ask(processes, port, "--prompt_ids=5", "--tokens=1").wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize(
  "flags,message",
  [
    (["--prompt_ids=" + ",".join(["5"] * 20), "--tokens=1"], "20 tokens are more than the 16 positions|do not fit"),
    (["--prompt_ids=5,6", "--tokens=40"], "do not fit the model's 16 positions: .*ask for 15 or fewer"),
    (["--prompt_ids=5,9999", "--tokens=1"], "token 9999 is out of range"),
    (["--prompt=", "--tokens=1"], "the prompt is empty"),
    (["--prompt_ids=5,x"], "are not numbers"),
    (["--prompt_ids=5,-1"], "are not numbers"),
  ],
)
def test_a_prompt_that_does_not_fit_is_refused_by_the_client(processes, checkpoint, flags, message):
  _, port = serve(processes, checkpoint)
  _, err = (client := ask(processes, port, *flags)).communicate(timeout=PATIENCE)
  assert client.returncode == 2 and re.search(message, err), err
  assert err.count("error:") == 1


def test_a_port_in_use_is_one_line(processes, checkpoint):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    _, err = run("private.serve", f"--checkpoint={checkpoint}", f"--port={port}", expect=2)
  assert f"cannot listen on 127.0.0.1:{port}" in err
