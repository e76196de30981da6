"""The Colab notebooks: what is stored of them, and each of them executed from clean in an empty folder, on a CPU."""

import base64
import gzip
import importlib.util
import json
import re
import subprocess
import sys

import nbformat
import pytest
from waiting import PATIENCE

from launch import notebooks

BUILT = {name: notebooks.build(name) for name in notebooks.NAMES}
STORED = {name: nbformat.read(notebooks.path_of(name), as_version=4) for name in notebooks.NAMES}
PATHS = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|var|opt|content)/")
every = pytest.mark.parametrize("name", notebooks.NAMES)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
  return [output for cell in code(notebook) for output in cell.outputs]


def said(notebook):
  return "".join(output.get("text", "") for output in outputs(notebook))


def pages(notebook):
  """The HTML files that a notebook shows, unpacked."""
  shown = [output.get("data", {}).get("text/html", "") for output in outputs(notebook)]
  packed = [found[1] for html in shown if (found := re.search(r"data:application/gzip;base64,([\w+/=]+)", html))]
  return [gzip.decompress(base64.b64decode(text)).decode() for text in packed]


def pictures(notebook):
  return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@every
def test_the_stored_notebook_is_what_its_cells_build(name):
  nbformat.validate(STORED[name])
  assert [(cell.cell_type, cell.source) for cell in STORED[name].cells] == [
    (cell.cell_type, cell.source) for cell in BUILT[name].cells
  ], "python -m launch.notebooks builds them anew"


@every
def test_it_opens_with_a_title_the_installation_and_its_parameters(name):
  title, setup, parameters = STORED[name].cells[:3]
  assert title.cell_type == "markdown" and title.source.startswith("# ")
  assert re.search(r'^REPOSITORY = ".*"  # @param \{type:"string"\}$', setup.source, re.MULTILINE)
  assert setup.source == code(STORED["quickstart"])[0].source  # one address, one set-up
  assert parameters.source.count("# @param") >= 3 and "parameters" in parameters.metadata.tags
  assert sum("# @param" in cell.source for cell in code(STORED[name])) == 2


@every
def test_what_is_stored_is_whole_and_names_no_machine(name):
  notebook = STORED[name]
  assert notebooks.path_of(name).stat().st_size < 1_000_000
  assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
  for output in outputs(notebook):
    assert output.output_type != "error"
    text = output.get("text", "") or json.dumps(output.get("data", {}).get("text/plain", ""))
    assert not PATHS.search(text), PATHS.search(text)
    assert "\r" not in text and "\x1b" not in text and "%|" not in text  # a bar is no result
  assert not any(PATHS.search(page) for page in pages(notebook))
  assert pictures(notebook) >= 1


def test_what_a_terminal_shows_in_the_end():
  assert notebooks.seen("train: 1\rtrain: 22\r         \rdone\n") == "done\n"
  assert notebooks.seen("\x1b[32mgreen\x1b[0m\r\nnext") == "green\nnext"
  assert notebooks.seen("longer\rab") == "abnger"
  assert notebooks.seen("outer\n\rinner\x1b[A\n\r     \r\x1b[A\r     \rdone\n") == "done\n"  # a bar within a bar


def test_outputs_stay_with_the_cells_that_did_not_change():
  stored = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[], execution_count=7)])
  built = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("2")])
  kept = notebooks.with_outputs(built, stored)
  assert [cell.execution_count for cell in kept.cells] == [7, None]


def executed(name, folder, monkeypatch):
  """A notebook as built, run by a fresh kernel, in which nothing of this process's settings is left."""
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(notebooks.ROOT))
  monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device
  notebook = notebooks.build(name)
  notebooks.execute(notebook, folder, timeout=PATIENCE)
  assert not PATHS.search(said(notebook))
  return notebook


@pytest.mark.slow
def test_quickstart_trains_draws_and_writes(tmp_path, monkeypatch):
  notebook = executed("quickstart", tmp_path, monkeypatch)
  assert pictures(notebook) == 2
  (page,) = pages(notebook)
  assert page == (tmp_path / "runs" / "quickstart" / "report.html").read_text()
  for expected in ("PPL", "compiling the training step", "def __init__(self", "ceiling: 3."):
    assert expected in said(notebook)
  losses = [json.loads(line) for line in (tmp_path / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()]
  losses = [record["loss"] for record in losses if record["kind"] == "train"]
  assert losses[-1] < losses[0] - 1.5


@pytest.mark.slow
def test_experiment_sweeps_and_reads_the_best_run(tmp_path, monkeypatch):
  notebook = executed("experiment", tmp_path, monkeypatch)
  assert pictures(notebook) == 3
  (table,) = (tmp_path / "runs").glob("sweep_*/table.json")
  rows = json.loads(table.read_text())["runs"]
  assert len(rows) == 6 and all(row["status"] == "finished" for row in rows)
  best = min(rows, key=lambda row: row["perplexity"])
  for expected in (best["name"], f"{best['perplexity']:.2f}", "import os", "rounds"):
    assert expected in said(notebook)


@pytest.mark.slow
def test_collapse_names_the_heads_that_died(tmp_path, monkeypatch):
  notebook = executed("collapse", tmp_path, monkeypatch)
  found = dict(re.findall(r"^(\S+): PPL \d+, (\d+) collapsed heads", said(notebook), re.MULTILINE))
  assert int(found["SM"]) >= 8 and re.search(r"\bL1[01]H\d", said(notebook))
  assert found["SM+LN"] == found["EReg(SM(t)+ScFuFFN)"] == "0"
  assert pictures(notebook) == 4 and len(pages(notebook)) == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("spu") is None, reason="the two-party engine is not installed")
def test_private_text_is_that_in_the_clear(tmp_path, monkeypatch):
  notebook = executed("private", tmp_path, monkeypatch)
  clear, private = (
    json.loads((tmp_path / "runs" / "private" / f"{name}.json").read_text()) for name in ("clear", "private")
  )
  assert clear["text"] == private["text"] and "\nthe same text\n" in said(notebook)
  assert all(spent["prepared"] for spent in private["spent"])
  log = (tmp_path / "runs" / "private" / "server.log").read_text()
  assert "serving on" in log and "__init__" not in log
  assert pictures(notebook) == 1


@pytest.mark.slow
def test_inspect_names_heads_of_a_hugging_face_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  notebook = executed("inspect", tmp_path, monkeypatch)
  assert (tmp_path / "runs" / "small_gpt2" / "config.json").exists()
  assert pictures(notebook) == 1 and len(pages(notebook)) == 1
  for expected in ("cannot be reached", "PPL", "heads by quarter"):
    assert expected in said(notebook)


def test_a_notebook_without_an_address_says_so(tmp_path):
  """The set-up, in an interpreter that has no package of ours: it asks for the address and tries nothing else."""
  (setup,) = [cell.source for cell in code(BUILT["quickstart"])[:1]]
  program = re.sub(r'REPOSITORY = ".*?"', 'REPOSITORY = ""', setup).replace(
    "from IPython.display import HTML, display", ""
  )
  done = subprocess.run([sys.executable, "-S", "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 1 and "REPOSITORY is empty" in done.stderr
