"""The one map between Hugging Face GPT-2 and the parameters of `model.GPT`.

Theirs are a tensor a layer, ours are stacked over layers; theirs hold queries, keys and values side by side, ours do
not. Both multiply x W, so that nothing but their head is transposed.
Letters: D model width, F FFN width, V vocabulary, P positions, L layers.
"""

from collections.abc import Callable, Iterator, Mapping
import re

import numpy as np

from entropy_attn import sizes

# Below h.N.: its shape in letters, and our parameters whose columns it holds, from the left.
BLOCK = {
  "ln_1.weight": ("D", ("ln_attn.scale",)),
  "ln_1.bias": ("D", ("ln_attn.bias",)),
  "attn.c_attn.weight": ("D 3D", ("q.kernel", "k.kernel", "v.kernel")),
  "attn.c_attn.bias": ("3D", ("q.bias", "k.bias", "v.bias")),
  "attn.c_proj.weight": ("D D", ("o.kernel",)),
  "attn.c_proj.bias": ("D", ("o.bias",)),
  "ln_2.weight": ("D", ("ln_ffn.scale",)),
  "ln_2.bias": ("D", ("ln_ffn.bias",)),
  "mlp.c_fc.weight": ("D F", ("up.kernel",)),
  "mlp.c_fc.bias": ("F", ("up.bias",)),
  "mlp.c_proj.weight": ("F D", ("down.kernel",)),
  "mlp.c_proj.bias": ("D", ("down.bias",)),
}
WHOLE = {
  "wte.weight": ("V D", "token_embedding"),
  "wpe.weight": ("P D", "position_embedding"),
  "ln_f.weight": ("D", "ln_f.scale"),
  "ln_f.bias": ("D", "ln_f.bias"),
}
HEAD = "lm_head.weight"  # [V, D]; our `head` is [D, V]
PREFIX = "transformer."  # of all but the head, where the file is of a whole language model
# Tensors that files hold besides: constants, and heads of other tasks.
_CONSTANTS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
_OTHER_HEADS = re.compile(r"(multiple_choice_head|score|classifier|summary|v_head)\..*")


def shapes(model_config) -> dict[str, tuple[int, ...]]:
  """The shape of every tensor of a GPT-2, by its name without the prefix."""
  c = model_config
  letters = {"D": c.d_model, "3D": 3 * c.d_model, "F": sizes.ffn_width(c), "V": c.vocab_size, "P": c.max_positions}
  of = lambda text: tuple(letters[letter] for letter in text.split())
  found = {name: of(shape) for name, (shape, _) in WHOLE.items()}
  found |= {f"h.{l}.{name}": of(shape) for l in range(c.num_layers) for name, (shape, _) in BLOCK.items()}
  return found if c.tie_embeddings else found | {HEAD: of("V D")}


def plain(name: str) -> str | None:
  """The name of a tensor without its prefix; None for a constant, which is computed here."""
  return None if _CONSTANTS.fullmatch(name) else name.removeprefix(PREFIX)


def is_other_head(name: str) -> bool:
  """Whether a tensor is of a head that no language model has."""
  return _OTHER_HEADS.fullmatch(name) is not None


def to_params(tensor: Callable[[str], np.ndarray], model_config) -> dict:
  """Our parameters, float32, of their tensors.

  Args:
    tensor: the array of a name of `shapes`, of that shape.
  """
  L = model_config.num_layers
  params: dict = {"blocks": {}}
  for name, (_, path) in WHOLE.items():
    _put(params, path, np.asarray(tensor(name), np.float32))
  if not model_config.tie_embeddings:
    params["head"] = np.ascontiguousarray(np.asarray(tensor(HEAD), np.float32).T)
  for name, (_, paths) in BLOCK.items():
    stacks: list[np.ndarray] = []
    for l in range(L):
      parts = np.split(tensor(f"h.{l}.{name}"), len(paths), axis=-1)
      stacks = stacks or [np.empty((L, *part.shape), np.float32) for part in parts]
      for stack, part in zip(stacks, parts, strict=True):
        stack[l] = part
    for path, stack in zip(paths, stacks, strict=True):
      _put(params["blocks"], path, stack)
  return params


def to_tensors(params: Mapping, model_config) -> Iterator[tuple[str, np.ndarray]]:
  """Their tensors of our parameters, each with its whole name; a bias that ours lack is zero."""
  for name, (_, path) in WHOLE.items():
    yield PREFIX + name, np.asarray(_get(params, path))
  if not model_config.tie_embeddings:
    yield HEAD, np.ascontiguousarray(np.asarray(params["head"]).T)
  for l in range(model_config.num_layers):
    for name, (_, paths) in BLOCK.items():
      parts = [_of_layer(params["blocks"], path, l) for path in paths]
      yield f"{PREFIX}h.{l}.{name}", np.ascontiguousarray(np.concatenate(parts, axis=-1))


def _of_layer(blocks: Mapping, path: str, l: int) -> np.ndarray:
  found = _get(blocks, path)
  if found is not None:
    return np.asarray(found[l])
  kernel = _get(blocks, path.replace(".bias", ".kernel"))
  return np.zeros(kernel.shape[-1], np.float32)


def _put(tree: dict, path: str, value) -> None:
  *above, last = path.split(".")
  for part in above:
    tree = tree.setdefault(part, {})
  tree[last] = value


def _get(tree: Mapping, path: str):
  for part in path.split("."):
    tree = tree.get(part)
    if tree is None:
      return None
  return tree
