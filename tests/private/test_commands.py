"""The commands on a small trained run: profile, perplexity, cost, audit, and what they refuse."""

import importlib
import json

from private.commands import LINEAR, fields, needs_engine, run
import pytest
from tiny_runs import TINY

COMMANDS = ("profile", "serve", "generate", "cost", "perplexity", "audit", "calibrate", "approximate")


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
  assert json.loads((linear_run / "private_profile.json").read_text())["total_bytes"] == found["total_bytes"]
  assert (linear_run / "private_profile.png").stat().st_size > 5000


@needs_engine
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


def test_a_training_run_tells_its_predicted_cost(linear_run):
  private = json.loads((linear_run / "summary.json").read_text())["private_inference"]
  assert private["total_bytes"] > 1e6 and set(private["latency_seconds"]) == {"LAN", "WAN"}


def test_the_audit_prints_and_writes_all(tmp_path):
  out, _ = run("private.audit", f"--workdir={tmp_path}", f"--json={tmp_path / 'a.json'}")
  found = json.loads((tmp_path / "audit.json").read_text())
  assert found == json.loads((tmp_path / "a.json").read_text()) and len(found["rows"]) == 16
  assert "145.24" in out and "MB/s it would take" in out
  for name in ("bytes.png", "latency.png"):
    assert (tmp_path / name).stat().st_size > 20_000
  _, err = run("private.audit", expect=2)
  assert "error: --workdir=DIR is missing" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_called_from_python(name):
  command = importlib.import_module(f"entropy_attn.private.{name}")
  assert callable(command.define_flags) and callable(command.main)


@pytest.mark.parametrize(
  "module,flags,message",
  [
    ("private.profile", [], "name a model: --checkpoint=RUN, or --config=FILE"),
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
    ("private.generate", ["--prompt=x", "--server=127.0.0.1:1"], "nobody answers at 127.0.0.1:1"),
    ("private.generate", ["--prompt=x", "--tls_ca=x.pem"], "TLS needs all of --tls_cert, --tls_key and --tls_ca"),
    ("private.generate", ["--prompt="], "the prompt is empty"),
    ("private.generate", ["--prompt=x", "--server=[::1]:1"], "nobody answers at ::1:1"),
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
