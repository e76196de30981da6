"""The examples: short, run as they stand, and what they print is what an independent computation says."""

import ast
import math
import pathlib
import re
import runpy

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TESTED = {"head_statistics", "linen", "nnx", "pretrained", "price", "regularizer"}


def run(name, monkeypatch, *arguments):
  """The globals of an example that ran as a user runs it."""
  path = ROOT / "examples" / f"{name}.py"
  monkeypatch.setattr("sys.argv", [str(path), *map(str, arguments)])
  return runpy.run_path(str(path), run_name="__main__")


def causal_attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, temperature=1.0):
  """(out [B, T, H, K], entropy [B, T, H]) with the matrix, in float64 NumPy."""
  q, k, v = (np.asarray(x, np.float64) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
  logits = np.einsum("BTHK,BSHK->BHTS", q, k) / np.sqrt(q.shape[-1]) / np.reshape(temperature, (-1, 1, 1))
  weights = np.exp(logits - logits.max(-1, keepdims=True)) * np.tril(np.ones(logits.shape[-2:]))
  p = weights / weights.sum(-1, keepdims=True)
  entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
  return np.einsum("BHTS,BSHK->BTHK", p, v), entropy.swapaxes(1, 2)


def test_every_example_is_tested_here():
  assert {path.stem for path in EXAMPLES} == TESTED


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_ten_lines_of_code_at_most(path):
  """Without its docstring, comments, blank lines and imports."""
  docstring, *statements = ast.parse(path.read_text()).body
  assert isinstance(docstring, ast.Expr) and ast.get_docstring(ast.parse(path.read_text()))
  lines = path.read_text().splitlines()
  code = [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom)]
  counted = [line for s in code for line in lines[s.lineno - 1 : s.end_lineno] if line.split("#")[0].strip()]
  assert 0 < len(counted) <= 10, f"{len(counted)} lines"


def test_linen_gives_the_values_and_entropies_of_attention_with_a_matrix(monkeypatch, capsys):
  found = run("linen", monkeypatch)
  params, x = found["variables"]["params"], np.asarray(found["x_BxTxD"], np.float64)
  q, k, v = (np.einsum("BTD,DHK->BTHK", x, params[n]["kernel"]) + params[n]["bias"] for n in "qkv")
  out, entropy = causal_attention(q, k, v)
  y = np.einsum("BTHK,HKD->BTD", out, params["o"]["kernel"]) + params["o"]["bias"]
  np.testing.assert_allclose(found["y_BxTxD"], y, atol=1e-5)
  np.testing.assert_allclose(found["entropy_BxTxH"], entropy, atol=1e-5)
  printed = [float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
  np.testing.assert_allclose(printed, entropy.mean((0, 1)), atol=1e-5)


def test_nnx_gives_the_gradient_of_the_entropy_by_each_temperature(monkeypatch, capsys):
  found = run("nnx", monkeypatch)
  qkv = found["attention"].qkv
  x = np.asarray(found["x_BxTxD"], np.float64)
  q, k, v = (
    np.einsum("BTD,DnHK->nBTHK", x, np.asarray(qkv.kernel[...], np.float64)) + np.asarray(qkv.bias[...])[:, None, None]
  )
  step = 1e-5
  mean = lambda temperature: causal_attention(q, k, v, temperature)[1].mean()
  slopes = [(mean(0.5 + step * row) - mean(0.5 - step * row)) / (2 * step) for row in np.eye(4)]
  printed = [float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
  np.testing.assert_allclose(printed, slopes, rtol=1e-3)
  assert min(slopes) > 0  # warmer is more diffuse


def test_the_regulariser_takes_the_probabilities_of_any_attention_and_a_step_lowers_it(monkeypatch, capsys):
  found = run("regularizer", monkeypatch)
  q, k = np.einsum("BTD,nDHK->nBTHK", found["x_BxTxD"], np.asarray(found["weights"], np.float64))
  entropy = causal_attention(q * np.sqrt(8), k, k)[1].swapaxes(1, 2)  # [B, H, T]; it scales by 1 / sqrt(8)
  delta = entropy - 0.5 * math.log(16)
  expected = np.where(np.abs(delta) > 0.2 * math.log(16), delta**2, 0).sum(-1).mean()
  before, after = map(float, re.findall(r"\d+\.\d+", capsys.readouterr().out))
  assert before == pytest.approx(expected, abs=1e-3)
  assert after < before
  assert np.isfinite(found["gradient"]).all()  # also where a masked probability is exactly zero


def test_head_statistics_are_those_of_the_collapse_in_the_results(monkeypatch, capsys):
  found = run("head_statistics", monkeypatch)
  shares, collapsed = capsys.readouterr().out.splitlines()
  (row,) = re.findall(r"\| sm_hot .*?(\d+ / \d+ / \d+ / \d+) %", (ROOT / "docs/results/collapse.md").read_text())
  assert shares.partition(": ")[2].split() == row.split(" / ")
  low = np.argwhere(found["entropy_LxH"] < 3.88 / 4)
  assert collapsed.split()[1:] == [f"L{layer}H{head}" for layer, head in low]


def test_head_statistics_of_a_file_of_ones_own(monkeypatch, capsys, tmp_path):
  np.save(tmp_path / "mine.npy", np.array([[0.1, 1.5], [2.5, 3.5]]))
  run("head_statistics", monkeypatch, tmp_path / "mine.npy")
  assert capsys.readouterr().out == "heads by quarter, %: 25 25 25 25\ncollapsed: L0H0\n"


def test_the_price_of_a_function_is_that_of_its_operations(monkeypatch, capsys):
  prices = run("price", monkeypatch)["prices"]
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(":")[0] for line in lines] == ["relu_squared", "relu", "silu"]
  for price in prices.values():
    assert price["total_bytes"] == pytest.approx(sum(row["bytes"] for row in price["by_operation"].values()))
  squared, relu, silu = (price["total_bytes"] for price in prices.values())
  assert relu < squared < silu  # a square comes on top of a comparison; an exponential has many


@pytest.mark.slow
def test_the_entropy_of_a_hugging_face_model_is_that_of_its_attention_matrices(monkeypatch, capsys, tmp_path):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  source = tiny_gpt2(tmp_path / "gpt2", transformers, torch)
  found = run("pretrained", monkeypatch, source, "def f(x): return x + 1")
  model = transformers.GPT2LMHeadModel.from_pretrained(source, attn_implementation="eager")
  with torch.no_grad():
    out = model(torch.tensor(np.asarray(found["tokens_BxT"])), output_attentions=True)
  np.testing.assert_allclose(found["logits_BxTxV"], out.logits, atol=1e-4)
  p = np.stack([layer.numpy() for layer in out.attentions]).astype(np.float64)  # [L, B, H, T, S]
  entropy_LxH = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1).mean((1, 3))
  printed = [float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
  np.testing.assert_allclose(printed, entropy_LxH.reshape(-1), atol=0.006)


def tiny_gpt2(folder, transformers, torch):
  """A Hugging Face folder: GPT-2 of two layers with random weights, and a tokenizer trained on this file."""
  import tokenizers

  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train([__file__], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    vocab_size=300, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
  )
  transformers.GPT2LMHeadModel(config).save_pretrained(folder)
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder


def test_the_readme_names_every_example():
  text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/library.md"))
  assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in text] == []
