"""The kernels and the whole step, compiled for chips that are not here: what a good kernel must show without running.

Needs requirements-aot.txt: run by `make test-aot`.
"""

import importlib.util
import json
import subprocess
import sys

from command_line import environment
import pytest

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin")),
    reason="the compilers of requirements-aot.txt are not installed: make test-aot",
  ),
]

SHARED_BYTES = 99 * 2**10  # the most that a block may have on any chip since Ampere
H100_BYTES, V5E_BYTES = 80e9, 16e9


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  path = tmp_path_factory.mktemp("aot") / "report.json"
  subprocess.run([sys.executable, "-m", "benchmarks.aot", "--json", path], check=True, env=environment())
  return json.loads(path.read_text())


def test_gpu_kernels_spill_nothing_and_use_tensor_cores_within_shared_memory(report):
  # (plain, padding, without entropy, all options) × (forward, dq, dkdv of 5 widths and dtypes, row terms of 2)
  assert len(report["kernels"]) == 4 * (5 * 3 + 2)
  for kernel in report["kernels"]:
    assert kernel["spilled_bytes"] == 0, kernel
    assert 0 < kernel["shared_bytes"] <= SHARED_BYTES, kernel
    assert kernel["tensor_cores"] in ("wgmma", "mma"), kernel
    if kernel["dtype"] == "bfloat16" and kernel["head_width"] <= 128:
      assert kernel["tensor_cores"] == "wgmma", kernel


def test_no_program_holds_an_attention_matrix_unless_asked_for(report):
  programs = [program for program in report["programs"] if "reference" not in program["program"]]
  assert {program["chip"] for program in programs} == {"h100", "v5e"}
  assert [program for program in programs if program["square_buffers"]] == []
  asked = [program for program in report["programs"] if "reference" in program["program"]]
  assert len(asked) == 1 and asked[0]["square_buffers"]


def test_the_gpu_kernels_are_given_no_copies(report):
  for program in report["programs"]:
    if program["chip"] == "h100" and program["T"] == 2048 and program["program"].endswith("forward"):
      # Masks of keys are made integers, statistics scaled: a hundredth of what the kernel reads.
      assert program["moved_bytes"] < 1.05 * program["least_bytes"], program


def test_the_step_runs_the_kernels_and_fits_the_chip_up_to_32768_tokens(report):
  steps = [
    p for p in report["programs"] if p["program"].startswith("training step") and "reference" not in p["program"]
  ]
  assert {(p["chip"], p["T"]) for p in steps} >= {("h100", 32768), ("v5e", 32768)}
  for step in steps:
    if step["chip"] == "h100":
      assert step["kernels"] == [f"entropy_attention_{name}" for name in ("dkdv", "dq", "forward")]
    assert step["total_bytes"] < (H100_BYTES if step["chip"] == "h100" else V5E_BYTES), step


def test_memory_is_linear_in_length(report):
  for chip in ("h100", "v5e"):
    steps = {p["T"]: p for p in report["programs"] if p["chip"] == chip and p["program"].endswith("step, batch 1")}
    longer = {p["T"]: p for p in report["programs"] if p["chip"] == chip and p["program"].endswith("step, batch 8")}
    # Twice the tokens (1 × 32,768 against 8 × 2,048), 16 times the length: not more than 2.5 times the memory.
    assert steps[32768]["temporary_bytes"] < 2.5 * longer[2048]["temporary_bytes"]


def test_a_mesh_gathers_nothing_in_attention(report):
  meshed = [p for p in report["programs"] if "fsdp 2" in p["program"]]
  assert {p["chip"] for p in meshed} == {"h100", "v5e"}
  assert [p for p in meshed if p["gathered"]] == []
