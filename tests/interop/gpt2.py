"""A GPT-2 in NumPy, written from the published formulas over the names of its files, and folders that hold one."""

import json
import math

import ml_dtypes
import numpy as np
import safetensors.numpy

SETTINGS = {
  "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 10, "vocab_size": 23, "attn_pdrop": 0.0,
  "resid_pdrop": 0.0,
}  # fmt: skip
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def tensors_of(settings, seed=0):
  """Random tensors by their names without a prefix, none of them nothing special."""
  s, rng = settings, np.random.default_rng(seed)
  D, V, P = s["n_embd"], s["vocab_size"], s["n_positions"]
  F = s.get("n_inner") or 4 * D
  shapes = {"wte.weight": (V, D), "wpe.weight": (P, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
  for l in range(s["n_layer"]):
    shapes |= {f"h.{l}.{name}": shape for name, shape in {
      "ln_1.weight": (D,), "ln_1.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,),
      "attn.c_attn.weight": (D, 3 * D), "attn.c_attn.bias": (3 * D,), "attn.c_proj.weight": (D, D),
      "attn.c_proj.bias": (D,), "mlp.c_fc.weight": (D, F), "mlp.c_fc.bias": (F,), "mlp.c_proj.weight": (F, D),
      "mlp.c_proj.bias": (D,),
    }.items()}  # fmt: skip
  if not s.get("tie_word_embeddings", True):
    shapes["lm_head.weight"] = (V, D)
  return {name: rng.normal(0.1, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, settings=SETTINGS, tensors=None, *, prefix="transformer.", dtype="float32", shards=1, more=()):
  """Writes a folder as `transformers` does; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  tensors = tensors_of(settings) if tensors is None else tensors
  named = {name if name == "lm_head.weight" else prefix + name: x.astype(DTYPES[dtype]) for name, x in tensors.items()}
  named |= dict(more)
  (folder / "config.json").write_text(json.dumps(settings))
  if shards == 1:
    safetensors.numpy.save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
  names, where = sorted(named), {}
  for i in range(shards):
    file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
    safetensors.numpy.save_file({name: named[name] for name in names[i::shards]}, folder / file)
    where |= dict.fromkeys(names[i::shards], file)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
  return folder


def rounded(tensors, dtype):
  """The tensors as a file of a dtype holds them."""
  return {name: x.astype(DTYPES[dtype]).astype(np.float32) for name, x in tensors.items()}


def run(settings, tensors, tokens_T):
  """(logits [T, V], entropies [L, T, H]) of one sequence, float64."""
  s, w = settings, {name: np.asarray(x, np.float64) for name, x in tensors.items()}
  H, D, T = s["n_head"], s["n_embd"], len(tokens_T)
  x = w["wte.weight"][tokens_T] + w["wpe.weight"][:T]
  entropies = []
  for l in range(s["n_layer"]):
    get = lambda name, l=l: w[f"h.{l}.{name}"]
    linear = lambda h, name, get=get: h @ get(f"{name}.weight") + get(f"{name}.bias")
    qkv = linear(_norm(x, get("ln_1.weight"), get("ln_1.bias"), s), "attn.c_attn")
    mixed, rows = [], []
    for h in range(H):
      q, k, v = (qkv[:, i * D + h * D // H : i * D + (h + 1) * D // H] for i in range(3))
      scores = q @ k.T
      if s.get("scale_attn_weights", True):
        scores = scores / math.sqrt(D // H)
      if s.get("scale_attn_by_inverse_layer_idx", False):
        scores = scores / (l + 1)
      a = np.where(np.tri(T, dtype=bool), np.exp(scores - scores.max()), 0)
      a /= a.sum(axis=1, keepdims=True)
      mixed.append(a @ v)
      rows.append(-np.sum(a * np.log(np.where(a > 0, a, 1)), axis=1))
    entropies.append(np.stack(rows, axis=1))
    x = x + linear(np.concatenate(mixed, axis=1), "attn.c_proj")
    hidden = linear(_norm(x, get("ln_2.weight"), get("ln_2.bias"), s), "mlp.c_fc")
    x = x + linear(_ACTIVATIONS[s.get("activation_function", "gelu_new")](hidden), "mlp.c_proj")
  x = _norm(x, w["ln_f.weight"], w["ln_f.bias"], s)
  return x @ w.get("lm_head.weight", w["wte.weight"]).T, np.stack(entropies)


def _norm(x, gain, shift, settings):
  centred = x - x.mean(axis=-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + settings.get("layer_norm_epsilon", 1e-5))
  return centred / deviation * gain + shift


_TANH = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
_ACTIVATIONS = {
  "gelu_new": _TANH,
  "gelu_fast": _TANH,
  "gelu": np.vectorize(lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
  "relu": lambda x: np.maximum(x, 0),
  "linear": lambda x: x,
}
