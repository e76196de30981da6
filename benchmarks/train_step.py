"""A whole training step of GPT-2 small, regulariser on and off, against PyTorch's with the regulariser as published.

    make bench-train-step     (PyTorch's rows need requirements-bench.txt, which it installs)

Both train Hugging Face's GPT-2 small (LayerNorm, GELU, 12 layers, 12 heads) with AdamW on random tokens; float32 on a
CPU, bfloat16 on an accelerator. Each figure is the median of five processes, which take turns: tokens a second of a
process's fastest step, the least and the most of the five, and the peak memory of the whole process. The regulariser's
cost is the median ratio of steps with and without it, in turns in one process.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

from benchmarks import measure

# Context length, vocabulary, and sequences a step: on a CPU, on an accelerator.
CASES = {"128": (50_000, 8, 128), "512": (16_384, 2, 64), "2048": (16_384, 1, 16)}
LONGEST = {"32768": (16_384, 1, 1)}  # on an accelerator only
OURS = ("regulariser", "no regulariser", "regulariser, reference")
TORCH = ("torch, published regulariser", "torch, no regulariser")
COST = "cost of the regulariser"
PAIRS = 16


def one(name: str, T: str) -> dict:
  """The numbers of one row, measured in this process."""
  if name == COST:
    return _cost(T)
  step, tokens, best = _torch_step(name, T) if name.startswith("torch") else _jax_step(name, T)
  took = measure.seconds(step, times=2)
  numbers = {"seconds": took, "tokens_per_second": tokens / took, "bytes": measure.peak_bytes()}
  return numbers | ({"mfu": tokens / took / best} if best else {})


def _cost(T: str) -> dict:
  """The regulariser's part of a step: ratios of neighbouring steps, so that a slow spell slows both."""
  on, off = (_jax_step(name, T)[0] for name in OURS[:2])
  on(), off()
  pairs = []
  for i in range(PAIRS):
    seconds = {}
    for step in (on, off) if i % 2 else (off, on):  # what comes second gains nothing by it
      before = time.perf_counter()
      step()
      seconds[step] = time.perf_counter() - before
    pairs.append(seconds[on] / seconds[off])
  cost = statistics.median(pairs) - 1
  return {"seconds": cost, "ratios": pairs, "cost": cost}


def step_config(name: str, T: str, *, on_cpu: bool):
  """The config of one of OURS; on an accelerator in bfloat16, and of more sequences."""
  from entropy_attn import config

  vocabulary, few, many = (CASES | LONGEST)[T]
  c = config.codeparrot()
  c.model.update(context_length=int(T), max_positions=int(T), vocab_size=vocabulary, embedding_dropout=0.0)
  c.model.update(dtype="float32" if on_cpu else "bfloat16", attention="reference" if "reference" in name else "auto")
  c.regularizer.weight = 0.0 if name.startswith("no") else 1e-5
  c.train.update(batch_size=few if on_cpu else many, accumulation=1)
  c.eval.batch_size = c.train.batch_size
  c.mesh.data = 1
  config.validate(c)
  return c


def _jax_step(name: str, T: str):
  """The step, its tokens, and the tokens a second of a chip at its peak (None: unknown)."""
  import jax

  from entropy_attn import counts

  c, step, _ = jax_step(name, T)
  peak = counts.peak_flops(jax.devices()[0].device_kind)
  return step, c.train.batch_size * int(T), peak and peak / counts.training_flops_per_token(c.model)


def jax_step(name: str, T: str):
  """One of OURS: its config, a step that waits for its result, and its compiled program."""
  import jax
  import numpy as np

  from entropy_attn import sharding
  from entropy_attn.train_step import init_state, trace_train_step

  c = step_config(name, T, on_cpu=jax.default_backend() == "cpu")
  mesh = sharding.make_mesh(c, jax.devices()[:1])
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, c.model.vocab_size, (c.train.batch_size, int(T) + 1), np.int32)
  batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones(tokens[:, 1:].shape, np.float32)}
  with jax.set_mesh(mesh):
    state = jax.jit(lambda: init_state(c))()
    program = trace_train_step(c, mesh).lower().compile()
    batch = sharding.put_batch(batch, mesh)

  def step():
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = program(state, batch)
      jax.block_until_ready(metrics)

  return c, step, program


def _torch_step(name: str, T: str):
  import torch
  import transformers

  vocabulary, batch_size, _ = CASES[T]
  regularised = "published" in name
  torch.manual_seed(0)
  model = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=vocabulary, n_positions=int(T), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
      attn_implementation="eager" if regularised else "sdpa",
    )
  )  # fmt: skip
  layers, heads = model.config.n_layer, model.config.n_head
  thresholds = torch.nn.Parameter(torch.full((layers, heads), 0.5))
  optimizer = torch.optim.AdamW([*model.parameters(), thresholds], lr=1e-3, weight_decay=0.1)
  tokens = torch.randint(0, vocabulary, (batch_size, int(T) + 1))
  ceiling, gamma, weight = torch.log(torch.tensor(float(T))), 0.2, 1e-5

  def penalty(attentions):
    total = 0.0
    for layer, attention_BxHxTxT in enumerate(attentions):
      entropy_BxHxT = -(attention_BxHxTxT * torch.log(attention_BxHxTxT + 1e-9)).sum(-1)
      of_layer = 0.0
      for head in range(heads):
        delta = entropy_BxHxT[:, head] - thresholds[layer, head] * ceiling
        of_layer = of_layer + torch.where(delta.abs() > gamma * ceiling, delta**2, 0).sum()
      total = total + of_layer / heads
    return total / layers

  def step():
    out = model(tokens[:, :-1], output_attentions=regularised)
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten())
    if regularised:
      loss = loss + weight * penalty(out.attentions)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()

  return step, batch_size * int(T), None


def main(lengths: list[str], rounds: int, path: pathlib.Path | None) -> None:
  import jax

  from entropy_attn.report import tables  # not in the processes that are measured

  names = [*OURS, COST] + (list(TORCH) if jax.default_backend() == "cpu" else [])
  cases = [(name, T) for T in lengths for name in names]
  results = measure.in_turns("benchmarks.train_step", cases, rounds)
  rows = []
  for T in lengths:
    for name in names:
      found = results[name, T]
      if "error" in found:
        rows.append([T, name, found["error"], "", "", "", ""])
      elif name == COST:
        spread = " … ".join(f"{100 * cost:+.1f}" for cost in found["spread"])
        rows.append([T, name, f"{100 * found['cost']:+.1f} %", spread, "", "", ""])
      else:
        published = results.get((TORCH[0], T), {})
        ratios = [
          f"{found[key] / published[key]:.2f}" if key in published else "" for key in ("tokens_per_second", "bytes")
        ]
        speed = f"{found['tokens_per_second']:,.0f}" + (f" (MFU {100 * found['mfu']:.0f} %)" if "mfu" in found else "")
        tokens = found["tokens_per_second"] * found["seconds"]
        spread = " … ".join(f"{tokens / seconds:,.0f}" for seconds in reversed(found["spread"]))
        rows.append([T, name, speed, spread, ratios[0], f"{found['bytes'] / 2**20:,.0f}", ratios[1]])
  print(f"{measure.machine()}; GPT-2 small\n")
  print(tables.markdown(["T", "step", "tokens/s", "least … most", "× published", "peak MiB", "× published"], rows))
  if path:
    numbers = [{"name": name, "T": int(T), **found} for (name, T), found in results.items()]
    path.write_text(json.dumps({"machine": measure.machine(), "figures": numbers}, indent=2) + "\n")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--lengths", default=",".join(CASES), help=f"T, of {', '.join(CASES | LONGEST)}")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", type=pathlib.Path, help="writes the same numbers there")
  parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.one:
    print(json.dumps(one(*arguments.one)))
    sys.exit()
  main(arguments.lengths.split(","), arguments.rounds, arguments.json)
