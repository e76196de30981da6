"""Attention forward and backward: each implementation with its entropy, against the same without and against others'.

    make bench-attention     (PyTorch's row needs requirements-bench.txt, which it installs)

GPT-2 small's heads (12 of 64), causal; float32 on a CPU, bfloat16 on an accelerator. Each figure is of a process of its
own; time is the shortest of the calls, memory the peak above that of the imported library.
"""

import argparse
import importlib
import json
import pathlib
import sys

from benchmarks import measure

HEADS, WIDTH = 12, 64
TOKENS, TOKENS_ON_CHIP = (
  1024,
  16_384,
)  # a batch has as many sequences as make up so many, of a CPU and of an accelerator
LONGEST_MATERIALISED = 4096  # beyond it the matrices of one call are more than 10 GB
ON_CPU = ("reference", "blockwise", "blockwise, no entropy", "blockwise, products alone", "torch sdpa, no entropy")
ON_GPU = ("reference", "blockwise", "gpu", "gpu, no entropy", "cudnn, no entropy")
ON_TPU = ("reference", "blockwise", "tpu", "tpu, no entropy", "jax.nn, no entropy")


def one(name: str, T: int) -> dict:
  """Seconds and bytes of one implementation, in this process."""
  batch = max(1, _tokens() // T)
  step = _torch_step(batch, T) if name.startswith("torch") else _jax_step(name, batch, T)
  before = measure.peak_bytes()
  return {"seconds": measure.seconds(step), "bytes": measure.peak_bytes() - before}


def _tokens() -> int:
  import jax

  return TOKENS if jax.default_backend() == "cpu" else TOKENS_ON_CHIP


def _jax_step(name, batch, T):
  import jax
  import jax.numpy as jnp

  from entropy_attn import attention

  dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  keys = jax.random.split(jax.random.key(0), 5)
  shape = (batch, T, HEADS, WIDTH)
  q, k, v, dout = (jax.random.normal(key, shape, dtype) for key in keys[:4])
  dentropy = jax.random.normal(keys[4], shape[:3])
  kind, _, without = name.partition(", ")

  @jax.jit
  def step(q, k, v, dout, dentropy):
    if kind in ("cudnn", "jax.nn"):
      attend = lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, is_causal=True, implementation="cudnn" if kind == "cudnn" else None
      )
      out, vjp = jax.vjp(attend, q, k, v)
      return out, vjp(dout)
    if without == "products alone":
      return _products_alone(q, k, v, dout)
    if without:
      return _without_entropy(kind, q, k, v, dout)
    attend = lambda q, k, v: attention.dot_product_attention(q, k, v, is_causal=True, implementation=kind)
    out, vjp = jax.vjp(attend, q, k, v)
    return out, vjp((dout, dentropy))

  return lambda: jax.block_until_ready(step(q, k, v, dout, dentropy))


def _without_entropy(kind, q, k, v, dout):
  """The kernel's own code less its entropy."""
  import jax.numpy as jnp

  module = importlib.import_module(f"entropy_attn.kernels.{kind}")
  row_scale_HxT = jnp.full((HEADS, q.shape[1]), WIDTH**-0.5)
  operands = q, k, v, row_scale_HxT, None
  forward = module.forward(*operands, causal=True, with_entropy=False, with_rest=True)
  return forward.out_BxTxHxK, module.backward(*operands, forward, dout, None, causal=True)


def _products_alone(q, k, v, dout):
  """The seven products of the blocks of blockwise attention, and nothing between them."""
  import jax.numpy as jnp

  from entropy_attn.kernels import blockwise
  from entropy_attn.kernels.plan import Plan

  plan = Plan.of(q, k, True, None)
  zeros = jnp.zeros((q.shape[0], k.shape[2], WIDTH, k.shape[1]))

  def forward(out, at, i, start, k_NxWxK, v_NxWxK):
    s_NxMxW = jnp.einsum("NMK,NWK->NMW", plan.rows(q, at, i), k_NxWxK)
    return plan.put_rows(out, jnp.einsum("NMW,NWK->NMK", s_NxMxW, v_NxWxK), at, i)

  def backward(sums, at, i, start, k_NxWxK, v_NxWxK):
    dq, dk, dv = sums
    q_NxMxK, dout_NxMxK = (plan.rows(x, at, i) for x in (q, dout))
    s_NxMxW = jnp.einsum("NMK,NWK->NMW", q_NxMxK, k_NxWxK)
    u_NxMxW = jnp.einsum("NMK,NWK->NMW", dout_NxMxK, v_NxWxK)
    dk = plan.add_keys(dk, blockwise.over_rows(plan, q_NxMxK, u_NxMxW), at, start)
    dv = plan.add_keys(dv, blockwise.over_rows(plan, dout_NxMxK, s_NxMxW), at, start)
    return plan.put_rows(dq, jnp.einsum("NMW,NWK->NMK", u_NxMxW, k_NxWxK), at, i), dk, dv

  out = plan.over_blocks(forward, jnp.zeros_like(q), k, v)
  return out, plan.over_blocks(backward, (jnp.zeros_like(q), zeros, zeros), k, v)


def _torch_step(batch, T):
  import torch

  q, k, v = (torch.randn(batch, HEADS, T, WIDTH, requires_grad=True) for _ in range(3))
  dout = torch.randn(batch, HEADS, T, WIDTH)

  def step():
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).backward(dout)
    q.grad = k.grad = v.grad = None

  return step


def main(lengths: list[int], rounds: int, path: pathlib.Path | None) -> None:
  import jax

  from entropy_attn.report import tables  # not in the processes that are measured

  names = {"gpu": ON_GPU, "tpu": ON_TPU}.get(jax.default_backend(), ON_CPU)
  cases = [(n, str(T)) for T in lengths for n in names if n != "reference" or T <= LONGEST_MATERIALISED]
  results = measure.in_turns("benchmarks.attention", cases, rounds)
  yardstick = next(name for name in reversed(names) if name.split(",")[0] in ("torch sdpa", "cudnn", "jax.nn"))
  rows = []
  for T in lengths:
    for name in names:
      found = results.get((name, str(T)))
      if found is None:
        continue
      if "error" in found:
        rows.append([f"{T:,}", name, found["error"], "", ""])
        continue
      than = results[(yardstick, str(T))].get("seconds")
      ratio = f"{found['seconds'] / than:.2f}" if than else ""
      rows.append([f"{T:,}", name, f"{found['seconds'] * 1e3:.1f}", ratio, f"{found['bytes'] / 2**20:,.0f}"])
  print(f"{measure.machine()}; {HEADS} heads of {WIDTH}, {_tokens():,} tokens or one sequence\n")
  print(tables.markdown(["T", "implementation", "ms", f"against {yardstick}", "MiB"], rows))
  if path:
    numbers = [{"name": name, "T": int(T), **found} for (name, T), found in results.items()]
    path.write_text(json.dumps({"machine": measure.machine(), "figures": numbers}, indent=2) + "\n")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--lengths", default="128,512,2048,8192", help="T, separated by commas")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--json", type=pathlib.Path, help="writes the same numbers there")
  parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.one:
    print(json.dumps(one(arguments.one[0], int(arguments.one[1]))))
    sys.exit()
  main([int(T) for T in arguments.lengths.split(",")], arguments.rounds, arguments.json)
