# %% [markdown]
# # The heads of a pretrained model
#
# Any GPT-2 of the Hugging Face Hub, by name, on a text of your own: which heads read everything alike, which are stuck
# on one token, where in the text they differ, and whether the model's numbers fit the fixed point of private inference.
# No attention matrix is held, and no PyTorch is needed.
#
# *Runtime → Run all*: about three minutes on two CPU cores. Where the Hub cannot be reached, a small GPT-2 is trained
# here and saved as a Hugging Face folder in its place.

# %%
MODEL = "distilgpt2"  # @param ["distilgpt2", "gpt2", "gpt2-medium"] {allow-input: true}
ABOUT = "pathlib"  # @param ["pathlib", "json", "this", "turtle"] {allow-input: true}
STEPS = 100  # @param {type:"integer"}

# %% [markdown]
# ## The text
#
# The source of a module of this interpreter's own library, named in `ABOUT`. Any file will do: upload one, and name it
# here.

# %%
found = importlib.util.find_spec(ABOUT)
TEXT = pathlib.Path("text.txt")
TEXT.write_text(pathlib.Path(found.origin).read_text()[:20_000])
print(TEXT.read_text()[:300], "…")

# %% [markdown]
# ## The model

# %%
import huggingface_hub

import entropy_attn

SOURCE = MODEL
try:
  huggingface_hub.hf_hub_download(MODEL, "config.json")
except (OSError, huggingface_hub.errors.HfHubHTTPError):  # no network, or no such model
  print(f"{MODEL} cannot be reached: a small GPT-2 is trained in its place\n")
  SOURCE = "runs/small_gpt2"
  small = (
    "--config.model.num_layers=4 --config.model.d_model=64 --config.model.bias=all --config.eval.every=0 "
    f"--config.optimizer.learning_rate=3e-3 --config.eval.batches=20 --config.train.steps={STEPS}"
  )
  run(f"main --config=configs/codeparrot_ln_gelu.py:quick --workdir=runs/pretrained --noreport {small}")
  run(f"export --checkpoint=runs/pretrained --to={SOURCE}")
trained = entropy_attn.load(SOURCE)
m = trained.config.model
print(f"{trained.description}: L={m.num_layers}, H={m.num_heads}, d={m.d_model}, {m.vocab_size:,} tokens")

# %% [markdown]
# ## All heads on this text
#
# By name: *overloaded* heads read all tokens nearly alike, *collapsed* ones a single token. Then whether scores and
# LayerNorm statistics stay within what fixed point holds.

# %%
run(f"inspect --model={SOURCE} --text={TEXT} --html=inspect.html --json=inspect.json")

# %%
show("inspect.html", height=1000)

# %% [markdown]
# ## From Python
#
# The same entropies, for a passage: each row a head, each column a token.

# %%
import matplotlib.pyplot as plt
import numpy as np

from entropy_attn.model import GPT
from entropy_attn.report import style

ids = trained.tokenizer.encode_batch([TEXT.read_text()[:400]])[0][:64]
logits, out = jax.jit(GPT(trained.config).apply)(trained.variables, np.array([ids]))
rows = np.asarray(out["entropy"])[:, 0].transpose(0, 2, 1).reshape(-1, len(ids))
figure, axes = plt.subplots(figsize=(13, 1.5 + 0.1 * len(rows)), layout="constrained")
image = axes.imshow(rows, cmap=style.CMAP, vmin=0, vmax=np.log(len(ids)), aspect="auto", interpolation="nearest")
words = [repr(trained.tokenizer.decode([i]))[1:-1].replace(" ", "·") for i in ids]
axes.set_xticks(range(len(ids)), words, rotation=90, fontsize=7, family="monospace")
axes.set_yticks(range(0, len(rows), m.num_heads), [f"layer {layer}" for layer in range(m.num_layers)], fontsize=8)
figure.colorbar(image, label="entropy (nats)", pad=0.01)
plt.show()
shares = entropy_attn.entropy.head_shares(rows.mean(axis=1), np.log(np.arange(1, len(ids) + 1)).mean())
print("heads by quarter of the range:", " / ".join(f"{100 * share:.0f}" for share in shares), "%")

# %% [markdown]
# ## Its price, privately
#
# At full size it is LayerNorm (norm) and GELU (activation) that cost. `colab_collapse` shows what becomes of the heads
# without them.

# %%
run(f"private.cost --checkpoint={SOURCE} --length=32")
