"""The command: text alone on standard output, everything else on the other, and one line for a mistake."""

import json
import os
import subprocess
import sys

from command_line import dry, environment, error
from command_line import run as call
import pytest
import tiny_runs
from waiting import PATIENCE

GIVEN = ["--checkpoint=nowhere", "--prompt=x"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--prompt=x"], "--checkpoint=SOURCE is missing"),
    (["--checkpoint=", "--prompt=x"], "names no file or folder"),
    (["--checkpoint=nowhere"], "give one of --prompt=TEXT and --prompt_ids=1,2,3"),
    ([*GIVEN, "--prompt_ids=1"], "give one of --prompt=TEXT and --prompt_ids=1,2,3"),
    (["--checkpoint=nowhere", "--prompt="], "the prompt is empty"),
    (["--checkpoint=nowhere", "--prompt_ids=1,x"], "--prompt_ids=1,x are not numbers"),
    ([*GIVEN, "--tokens=0"], "--tokens=0 must be a positive integer"),
    ([*GIVEN, "--temperature=-1"], "--temperature=-1 must be a non-negative number"),
    ([*GIVEN, "--temperature=1", "--top_k=-1"], "--top_k=-1 must be a non-negative integer"),
    ([*GIVEN, "--temperature=1", "--top_p=0"], "--top_p=0 must be above 0 and at most 1"),
    ([*GIVEN, "--temperature=1", "--top_p=1.5"], "--top_p=1.5 must be above 0 and at most 1"),
    ([*GIVEN, "--top_k=5"], "--top_k=5 is for drawing, and --temperature=0 draws nothing"),
    ([*GIVEN, "--stop="], "--stop='' would end before the first token"),
  ],
)
def test_a_mistake_is_told_at_once(flags, message):
  assert message in error(dry("generate", *flags))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("generate") / "run"
  tiny_runs.run(folder, corpus)
  return folder


def generate(trained, *flags, expect=0, **streams):
  done = call(f"--checkpoint={trained}", *flags, command="generate", env=environment(), timeout=PATIENCE, **streams)
  assert done.returncode == expect and "Traceback" not in f"{done.stdout}{done.stderr}", done.stderr
  return done


@pytest.mark.slow
def test_the_text_alone_is_on_standard_output_and_all_else_in_order(trained, tmp_path):
  path = tmp_path / "g.json"
  flags = ["--prompt=import os", "--tokens=6", f"--json={path}"]
  done = generate(trained, *flags)
  found = json.loads(path.read_text())
  assert done.stdout == found["text"] + "\n"
  first, last = done.stderr.splitlines()
  assert f"step {tiny_runs.STEPS} of {trained}" in first and "6 new, " in last and "tokens/s; compiling took" in last
  assert [len(found["tokens"]), len(found["tokens"][0]["entropy_LxH"]), len(found["tokens"][0]["entropy_LxH"][0])] == [
    6, 2, 2,
  ]  # fmt: skip
  assert all(token["logprob"] < 0 for token in found["tokens"])
  together = generate(trained, *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
  assert together.startswith(f"{first}\n{found['text']}\nprompt of ")
  # More than it can hold; what it cannot read; and the same seed in two processes.
  done = generate(trained, "--prompt_ids=5,6,7", "--tokens=99")
  assert "note: ended where the model can read no more: it has 16 positions" in done.stderr and "14 new" in done.stderr
  for flags, message in (
    (["--prompt_ids=300"], "token 300 is out of range: the model knows 0 to 299"),
    ([f"--prompt_ids={','.join('1' * 17)}"], "the prompt has 17 tokens, more than the model's 16 positions"),
  ):
    assert generate(trained, *flags, expect=2).stderr.splitlines()[-1].startswith(f"error: {message}")
  drawn = [
    generate(trained, "--prompt_ids=5", "--temperature=2", "--top_p=0.9", f"--seed={seed}").stdout for seed in (1, 1, 2)
  ]
  assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_a_reader_that_leaves_or_never_was_is_no_error(trained):
  reading, writing = os.pipe()
  os.close(reading)
  done = generate(trained, "--prompt=x", expect=1, stdout=writing, stderr=subprocess.PIPE)
  os.close(writing)
  assert len(done.stderr.splitlines()) == 1  # the model's name
  command = ["sh", "-c", 'exec "$0" "$@" 1>&-', sys.executable, "-m", "entropy_attn.generate"]
  done = subprocess.run([*command, f"--checkpoint={trained}", "--prompt=x"], stderr=subprocess.PIPE, check=False)
  assert done.returncode == 0
  assert "nowhere" in generate("nowhere", "--prompt=x", expect=2).stderr
