"""The entropy of each head of a pretrained model on a text.

    python examples/pretrained.py SOURCE [TEXT]

SOURCE: a run's folder, a Hugging Face folder of any GPT-2, or a name on the Hub, such as distilgpt2.
"""

import sys

import jax.numpy as jnp

import entropy_attn

model = entropy_attn.load(sys.argv[1])
text = sys.argv[2] if len(sys.argv) > 2 else "The quick brown fox jumps over the lazy dog."
tokens_BxT = jnp.array(model.tokenizer.encode_batch([text]))
logits_BxTxV, out = entropy_attn.model.GPT(model.config).apply(model.variables, tokens_BxT)
entropy_LxH = out["entropy"].mean(axis=(1, 2))
for layer, heads in enumerate(entropy_LxH):
  print(f"layer {layer}:", *(f"{head:.2f}" for head in heads))
