"""Trains Hugging Face's GPT-2 in PyTorch as a config of ours trains its own: same batches, optimizer and evaluation.

    .venv-bench/bin/python -m benchmarks.reference --config=configs/codeparrot_ln_gelu.py:quick

Its perplexity stands beside that of `python -m entropy_attn.main` with the same config. Theirs has a bias on every
linear, its weights are drawn by another generator, and the last projection of a block starts smaller.
"""

import math
import time

from absl import flags

from entropy_attn import cli

FLAGS = flags.FLAGS
_DECAYED_FROM = 2  # matrices decay; biases and the gains of norms do not


def define_flags() -> None:
  """Defines the command's flags."""
  cli.define_config()
  cli.define_json()


def main() -> None:
  """Trains and evaluates; prints the loss as it goes, and the perplexity on standard output."""
  import torch
  import transformers

  from entropy_attn.data import pipeline
  from entropy_attn.errors import UserError
  from entropy_attn.optimizer import make_schedule
  from entropy_attn.progress import bar

  config = cli.load_config()
  m, o = config.model, config.optimizer
  if (m.norm, m.activation, m.ffn, m.reparam, m.temperature) != ("layernorm", "gelu", "mlp", "none", "none"):
    raise UserError("Hugging Face's GPT-2 is SM+LN+G alone: use --config=configs/codeparrot_ln_gelu.py:quick")
  dataset = pipeline.prepare(config)
  torch.manual_seed(config.train.seed)
  model = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=m.vocab_size, n_positions=m.max_positions, n_embd=m.d_model, n_layer=m.num_layers, n_head=m.num_heads,
      activation_function="gelu" if m.gelu == "erf" else "gelu_new", resid_pdrop=0.0, attn_pdrop=0.0,
      embd_pdrop=m.embedding_dropout, use_cache=False, attn_implementation="sdpa",
    )
  )  # fmt: skip
  decays = lambda p: p.ndim >= _DECAYED_FROM
  groups = [
    {"params": [p for p in model.parameters() if decays(p)], "weight_decay": o.weight_decay},
    {"params": [p for p in model.parameters() if not decays(p)], "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, betas=(o.b1, o.b2), eps=o.eps)
  schedule, batches = make_schedule(config), pipeline.train_iterator(dataset, config)
  started = time.monotonic()
  with bar(total=config.train.steps, start=0, what="train", unit="step") as progress:
    for step in range(config.train.steps):
      loss = _loss_sum(model, next(batches)) / (config.train.batch_size * m.context_length)
      loss.backward()
      if o.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
      for group in optimizer.param_groups:
        group["lr"] = float(schedule(step))
      optimizer.step()
      optimizer.zero_grad()
      progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
      progress.update(1)
  model.eval()
  nll = tokens = 0.0
  with torch.no_grad():
    for batch in pipeline.eval_batches(dataset, config):
      nll, tokens = nll + _loss_sum(model, batch).item(), tokens + batch["weights"].sum().item()
  result = {
    "perplexity": math.exp(nll / tokens), "tokens": tokens, "seconds": time.monotonic() - started,
    "torch": torch.__version__, "transformers": transformers.__version__,
  }  # fmt: skip
  cli.write_json(result)
  print(f"PPL {result['perplexity']:.2f} on {tokens:,.0f} tokens, {result['seconds']:.0f} s")


def _loss_sum(model, batch):
  """The weighted sum of a batch's losses, nats."""
  import torch

  inputs, targets, weights = (torch.from_numpy(batch[name].copy()) for name in ("inputs", "targets", "weights"))
  logits = model(inputs.long()).logits
  losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), reduction="none")
  return (losses * weights.flatten()).sum()


if __name__ == "__main__":
  cli.run(define_flags, main)
