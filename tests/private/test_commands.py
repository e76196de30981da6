"""The commands on a small trained run: profile, perplexity, cost, audit, and what they refuse."""

import csv
import importlib
import json
import subprocess
import sys

from command_line import ROOT
from private.commands import LINEAR, fields, needs_engine, run
import pytest
from tiny_runs import TINY

COMMANDS = ("profile", "serve", "generate", "prepare", "cost", "perplexity", "audit", "calibrate", "approximate")


@pytest.fixture(scope="module")
def linear_run(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("private") / "run"
  run("main", "--config=configs/quickstart.py", f"--workdir={folder}", *fields(TINY | LINEAR | corpus))
  return folder


@needs_engine
def test_profile_accounts_for_every_byte(linear_run, tmp_path):
  out, err = run("private.profile", f"--checkpoint={linear_run}", f"--json={tmp_path / 'p.json'}")
  found = json.loads((tmp_path / "p.json").read_text())
  assert set(found["peak_rss_bytes"]) == {"server", "client"}
  assert found["max_abs_error"] < 0.03 and found["same_next_token"]
  for groups in (found["by_operation"], found["by_layer"]):
    for name, total in (("bytes", "total_bytes"), ("rounds", "rounds"), ("seconds", "seconds")):
      assert sum(group[name] for group in groups.values()) == pytest.approx(found[total])
    for group in groups.values():
      assert group["bytes"] == group["server_to_client"] + group["client_to_server"]
    assert sum(group["share"] for group in groups.values()) == pytest.approx(1)
  assert list(found["by_layer"]) == ["setup", "embedding", "0", "1", "head"]
  assert found["tightest_range"]["spare_bits"] > 2 and found["tightest_range"]["place"] in out
  assert {"embedding", "projection", "scores", "maximum", "exponential", "values"} <= set(found["by_operation"])
  assert f"{found['total_bytes'] / 1e6:,.2f}" in out
  assert "private inference: layer 1" in err  # a line a layer, where no terminal shows a bar
  (own,) = linear_run.glob("private_profile_L2_T16_*.json")
  assert json.loads(own.read_text())["total_bytes"] == found["total_bytes"] and own.name in out
  assert own.with_suffix(".png").stat().st_size > 5000


@needs_engine
@pytest.mark.slow
def test_some_layers_extrapolate_to_the_whole(tmp_path):
  sizes = {"model.num_layers": 4, "model.d_model": 16, "model.num_heads": 2, "model.context_length": 8,
           "model.max_positions": 8, "model.vocab_size": 60}  # fmt: skip
  common = ["--config=configs/codeparrot_scfuffn.py:quick", *fields(sizes)]
  found = []
  for layers in ([], ["--layers=2"]):
    out, _ = run("private.profile", *common, *layers, f"--json={tmp_path / 'p.json'}")
    found.append(json.loads((tmp_path / "p.json").read_text()))
  whole, part = found
  assert part["measured_layers"] == 2 and part["extrapolation_exact"]
  assert "2 of 4 layers were run" in out and "equal layers cost the same" in out
  assert part["total_bytes"] == pytest.approx(whole["total_bytes"], rel=0.02)
  assert list(part["by_layer"]) == list(whole["by_layer"])


@needs_engine
@pytest.mark.slow
def test_perplexity_in_fixed_point_is_the_models_own(linear_run, tmp_path):
  found = []
  for how in ("reference", "parties"):
    out, _ = run("private.perplexity", f"--checkpoint={linear_run}", "--sequences=2", f"--how={how}",
                 f"--json={tmp_path / 'p.json'}")  # fmt: skip
    found.append(json.loads((tmp_path / "p.json").read_text()))
    assert abs(found[-1]["relative_difference"]) < 5e-3
    assert "in fixed point" in out and found[-1]["tokens"] == 2 * 15
  assert found[0]["perplexity"] == found[1]["perplexity"]


def test_cost_from_a_config_alone(tmp_path):
  out, _ = run("private.cost", "--config=configs/codeparrot_ereg.py", "--line=WAN", "--line=300,20",
               f"--json={tmp_path / 'c.json'}")  # fmt: skip
  found = json.loads((tmp_path / "c.json").read_text())
  assert set(found["latency_seconds"]) == {"WAN", "300,20"}
  run(
    "private.cost", "--config=configs/codeparrot_ereg.py", "--line=WAN", "--compute=0", f"--json={tmp_path / 'c.json'}"
  )
  (least,) = json.loads((tmp_path / "c.json").read_text())["latency_seconds"].values()
  assert least == pytest.approx(found["total_bytes"] * 8 / 100e6 + found["rounds"] * 0.08)
  assert f"{found['total_bytes'] / 1e6:,.2f}" in out and "temperature" in out


def test_cost_sets_models_beside_each_other(linear_run, tmp_path):
  written = {name: tmp_path / name for name in ("one.json", "many.json", "many.csv")}
  base = "--config=configs/codeparrot_ln_gelu.py:quick"
  run("private.cost", base, f"--json={written['one.json']}")
  others = ("gelu=exact", "configs/codeparrot_scfuffn.py:quick", str(linear_run))
  out, _ = run("private.cost", base, *(f"--compare={other}" for other in others),
               f"--json={written['many.json']}", f"--csv={written['many.csv']}")  # fmt: skip
  one, many = (json.loads(written[name].read_text()) for name in ("one.json", "many.json"))
  compared = many.pop("compared")
  assert many == one and [model["model"] for model in compared] == list(others)
  assert [model["architecture"] for model in compared] == ["SM+LN+G", "SM+ScFuFFN", "EReg(SM(t)+ScFuFFN)"]
  assert compared[0]["total_bytes"] > many["total_bytes"] > compared[1]["total_bytes"]
  total = next(line for line in out.splitlines() if line.startswith("total"))
  assert [f"{model['total_bytes'] / 1e6:,.2f}" for model in (many, *compared)] == total.split()[1:5]
  activation = next(line for line in out.splitlines() if line.startswith("activation")).split()
  assert activation[3:5] == ["–", "–"] and "C: SM+ScFuFFN" in out
  lines = list(csv.DictReader(written["many.csv"].open()))
  for model, name in zip((many, *compared), (base.removeprefix("--config="), *others), strict=True):
    of_model = [float(line["bytes"]) for line in lines if line["model"] == name]
    assert sum(of_model) == pytest.approx(model["total_bytes"])


def test_cost_of_a_run_and_of_tokens_after_its_prompt(linear_run, tmp_path):
  (tmp_path / "lines.json").write_text('{"office": [300, 20]}')
  out, _ = run("private.cost", f"--checkpoint={linear_run}", "--length=4", "--tokens=3", "--threads=4",
               f"--lines={tmp_path / 'lines.json'}", f"--json={tmp_path / 'c.json'}")  # fmt: skip
  found = json.loads((tmp_path / "c.json").read_text())
  assert len(found["by_token"]) == 3 and found["threads"] == 4
  assert set(found["latency_seconds"]) == {"LAN", "WAN", "office"}
  assert "4 tokens and 2 more" in out and "token 3" in out and "office (300 Mbit/s, 20 ms)" in out
  assert "peak memory" in out and set(found["peak_rss_bytes"]) == {"server", "client"}


def test_cost_of_a_function(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("""import jax
from entropy_attn.private.price.protocols import Cost

def gate(x, w):
  return jax.nn.softplus(x @ w)

def by_table():
  return {"log1p": lambda use: Cost(bytes=300 * use.n, rounds=3)}
""")
  call = [f"--function={file}:gate", "--shape=64x96", "--shape=96x48:server"]
  _, err = run("private.cost", *call, expect=2)
  assert err == "error: private.cost does not know the operation log1p: say what it costs (private.cost --rules)\n"
  out, _ = run("private.cost", *call, f"--rules={file}:by_table", "--line=WAN", f"--json={tmp_path / 'c.json'}")
  found = json.loads((tmp_path / "c.json").read_text())
  assert found["by_operation"]["log1p"]["bytes"] == 300 * 64 * 48
  assert {"dot_general", "exp", "abs"} <= set(found["by_operation"]) and "log1p" in out
  assert found["latency_seconds"]["WAN"] > 0.08 * found["rounds"]


def test_a_training_run_tells_its_predicted_cost(linear_run):
  private = json.loads((linear_run / "summary.json").read_text())["private_inference"]
  assert private["total_bytes"] > 1e6 and set(private["latency_seconds"]) == {"LAN", "WAN"}


@pytest.mark.slow
def test_the_audit_prints_and_writes_all(tmp_path):
  out, _ = run("private.audit", f"--workdir={tmp_path}", f"--json={tmp_path / 'a.json'}")
  found = json.loads((tmp_path / "audit.json").read_text())
  assert found == json.loads((tmp_path / "a.json").read_text()) and len(found["rows"]) == 16
  assert "145.24" in out and "MB/s it would take" in out
  for name in ("bytes.png", "latency.png"):
    assert (tmp_path / name).stat().st_size > 20_000
  _, err = run("private.audit", expect=2)
  assert "error: --workdir=DIR is missing" in err


OF_312 = 'import platform, sys; platform.python_version = "3.12.1".format; '
OF_312 += 'platform.python_version_tuple = "3 12 1".split'


def test_setup_of_the_engine_says_where_python_has_none(tmp_path):
  """pip would skip it and end well."""
  later = tmp_path / "python"
  later.write_text(f"""#!/bin/sh
exec {sys.executable} -c '{OF_312}; exec(sys.argv[1])' "$2"
""")
  later.chmod(0o755)
  make = ["make", "--old-file=.venv/bin/python", "setup-private", f"PY={later}"]
  done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and "pip" not in done.stdout
  assert "error: the two-party engine has wheels for CPython 3.11 on Linux" in done.stderr
  assert "and .venv is CPython 3.12.1 on " in done.stderr


# Without the engine, and before anything is computed.
@pytest.mark.parametrize(
  "module,flags,message",
  [
    ("cost", ["--length=0"], "--length=0 must be a positive integer"),
    ("cost", ["--length=-5"], "--length=-5 must be a positive integer"),
    ("cost", ["--compute=nan"], "--compute=nan must be a finite number"),
    ("cost", ["--line=nan,20"], "is neither LAN, WAN nor MBIT,RTT"),
    ("cost", ["--transforms=condition_bound=nan"], "condition_bound=nan must be at least 1"),
    ("cost", ["--past=-1"], "--past=-1 must be a non-negative integer"),
    ("cost", ["--tokens=0"], "--tokens=0 must be a positive integer"),
    ("cost", ["--threads=0"], "--threads=0 must be a positive integer"),
    ("cost", ["--lines=nowhere.json"], "--lines=nowhere.json does not exist"),
    ("cost", ["--csv=nowhere/x.csv"], "--csv=nowhere/x.csv cannot be written"),
    ("cost", ["--compare=magic=on"], "transform='magic' is not one of"),
    ("cost", ["--compare=nowhere"], "nowhere is neither a file nor the name of one of ours"),
    ("cost", ["--plan"], "--plan is for one model and one line"),
    ("cost", ["--plan", "--line=LAN", "--compare=stock"], "--plan is for one model and one line"),
    ("profile", ["--plan=nowhere.json"], "--plan=nowhere.json is not what private.cost --plan --json=FILE writes"),
    ("cost", ["--function=x.py:f"], "name one to price"),
    ("cost", ["--shape=3"], "--shape and --rules are for --function=FILE.py:NAME"),
    ("profile", ["--rtt=-20"], "--rtt=-20 must be a non-negative number"),
    ("profile", ["--bandwidth=0"], "--bandwidth=0 must be at least 0.001"),
    ("profile", ["--error=0"], "--error=0 is less than the best chain of squares has"),
    ("perplexity", ["--error=1e-9"], "--error=1e-09 is less than the best chain of squares has"),
    ("perplexity", ["--sequences=0"], "--sequences=0 must be a positive integer"),
    ("generate", ["--prompt=caf\udce9"], "--prompt is not UTF-8"),  # Latin-1, as Python reads what is typed
    ("prepare", [], "--material=FOLDER is missing"),
    ("prepare", ["--material=x"], "--length=N is missing"),
    ("prepare", ["--material=x", "--length=4", "--sets=0"], "--sets=0 must be a positive integer"),
    ("profile", ["--offline=later"], "--offline='later' is not one of on, off"),
    ("serve", ["--reveal=token"], "--reveal='token' is not one of argmax, top_k, logits"),
    ("serve", ["--top_k=5"], "--top_k needs --reveal=top_k"),
    ("serve", ["--reveal=top_k", "--top_k=99"], "--top_k=99 must be an integer in the range"),
    ("serve", ["--quota_file=x"], "--quota_file needs --quota"),
    ("serve", ["--quota=5", "--quota_file=nowhere/x"], "--quota_file=nowhere/x cannot be written"),
    ("audit", ["--workdir=/proc/x"], "--workdir=/proc/x cannot be made"),
    ("audit", ["--workdir=.", "--measured=/nonexistent"], "--measured=/nonexistent is no folder"),
  ],
)
def test_a_mistake_is_told_before_jax_is_imported(module, flags, message, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "none of these")  # whoever asks JAX for devices fails otherwise
  config = [] if module in ("audit", "generate", "prepare") else ["--config=configs/quickstart.py"]
  _, err = run(f"private.{module}", *config, *flags, expect=2)
  assert err.count("\n") == 1 and err.startswith("error: ") and message in err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_called_from_python(name):
  command = importlib.import_module(f"entropy_attn.private.{name}")
  assert callable(command.define_flags) and callable(command.main)


@pytest.mark.parametrize(
  "module,flags,message",
  [
    ("private.profile", [], "name a model: --checkpoint=SOURCE, or --config=FILE"),
    ("private.profile", ["--checkpoint=nowhere"], "nowhere holds no run"),
    ("private.profile", ["--step=3", "--config=configs/quickstart.py"], "--step needs --checkpoint"),
    ("private.profile", ["--config=configs/quickstart.py", "--length=500"], "--length=500 must be between 1 and"),
    ("private.profile", ["--config=configs/quickstart.py", "--layers=9"], "--layers=9 must be between 2 and"),
    ("private.profile", ["--config=configs/quickstart.py", "--transforms=magic=on"], "transform='magic' is not one of"),
    (
      "private.profile",
      ["--config=configs/codeparrot_ln_gelu.py:quick", "--transforms=eliminate_ffns=on"],
      "an FFN vanishes only with model.norm=none and model.activation=identity, not layernorm and gelu",
    ),
    ("private.perplexity", ["--config=configs/quickstart.py", "--how=guess"], "--how='guess' is not one of"),
    ("private.cost", ["--config=configs/quickstart.py", "--line=fast"], "is neither LAN, WAN nor MBIT,RTT"),
    ("private.cost", [], "--config=FILE is missing"),
    ("private.generate", ["--prompt=x", "--server=here"], "has not the form host:port"),
    ("private.generate", [], "give one of --prompt=TEXT and --prompt_ids"),
    pytest.param(  # asked for ten seconds
      "private.generate",
      ["--prompt=x", "--server=127.0.0.1:1"],
      "nobody answers at 127.0.0.1:1",
      marks=pytest.mark.slow,
    ),
    ("private.generate", ["--prompt=x", "--tls_ca=x.pem"], "TLS needs all of --tls_cert, --tls_key and --tls_ca"),
    ("private.generate", ["--prompt="], "the prompt is empty"),
    ("private.generate", ["--prompt_ids="], "the prompt is empty"),
    ("private.generate", ["--prompt_ids=5,4o4"], "are not numbers"),
    (
      "private.generate",
      ["--prompt=x", "--server=192.0.2.1:9700"],
      "192.0.2.1 is not this machine alone, and without TLS",
    ),
    ("private.generate", ["--prompt=x", "--server=nobody.invalid:9700"], "the host 'nobody.invalid' is unknown"),
    ("private.generate", ["--prompt=x", "--tls_peer=server.example"], "--tls_peer needs TLS"),
    ("private.serve", ["--config=configs/quickstart.py", "--host=0.0.0.0"], "0.0.0.0 is not this machine alone"),
    (
      "private.serve",
      ["--config=configs/quickstart.py", "--port=1", "--host=192.0.2.1", "--insecure"],
      "cannot listen on",
    ),
    (
      "private.serve",
      ["--config=configs/quickstart.py", *(f"--tls_{name}=Makefile" for name in ("cert", "key", "ca"))],
      "Makefile cannot be used",
    ),
    (
      "private.serve",
      ["--config=configs/quickstart.py", *(f"--tls_{name}=x" for name in ("cert", "key", "ca")), "--tls_peer=ab:cd"],
      "is neither a name nor a SHA-256",
    ),
  ],
)
@needs_engine
def test_a_mistake_is_one_line(module, flags, message):
  _, err = run(module, *flags, expect=2)
  assert message in err
  assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
