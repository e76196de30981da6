# %% [markdown]
# # An experiment: how hard to guide, and what the heads do with it
#
# Entropy guidance has three dials: λ, the weight of the penalty; γ, the margin about a head's threshold within which
# nothing is penalised; and the temperature with which the softmax starts. Below, small models are trained over a grid
# of them, side by side, and set in one table; then one is loaded: its heads token by token, its text, its private
# price.
#
# *Runtime → Run all*: a few minutes on two CPU cores.

# %%
LAMBDAS = "0, 1e-5, 1e-4"  # @param {type:"string"}
GAMMAS = "0.2"  # @param {type:"string"}
TEMPERATURES = "0.01, 1"  # @param {type:"string"}
STEPS = 120  # @param {type:"integer"}
TEXT = "for name in sorted(os.listdir(path)):\n    print(name, os.path.getsize(name))"  # @param {type:"string"}
PROMPT = "import os\n\ndef "  # @param {type:"string"}
USE_DRIVE = False  # @param {type:"boolean"}

# %% [markdown]
# With `USE_DRIVE` all runs land in *My Drive/entropy_attn*: they outlive this runtime, and *Run all* tomorrow goes on
# with what is missing. Only Colab can mount it; elsewhere the runs land in `runs/`.

# %%
FOLDER = pathlib.Path("runs")
if USE_DRIVE and importlib.util.find_spec("google.colab"):
  from google.colab import drive

  drive.mount("/content/drive")
  FOLDER = pathlib.Path("/content/drive/MyDrive/entropy_attn")
SWEEP = FOLDER / f"sweep_{zlib.crc32(f'{LAMBDAS} {GAMMAS} {TEMPERATURES} {STEPS}'.encode()):08x}"  # a folder a grid
SWEEP.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The sweep
#
# A study is a file that lists runs; the command trains those that are missing, two at a time, and makes the table.

# %%
numbers = lambda text: [float(part) for part in text.split(",")]
study = f"""
import itertools
from entropy_attn.study import Run, Study

small = {{
  "model.num_layers": 4, "model.d_model": 64, "model.context_length": 64, "train.steps": {STEPS}, "train.log_every": 10,
  "train.checkpoint_every": {STEPS}, "optimizer.learning_rate": 3e-3, "eval.every": 0, "eval.batches": 20,
}}

def get_study(scale):
  grid = itertools.product({numbers(LAMBDAS)}, {numbers(GAMMAS)}, {numbers(TEMPERATURES)})
  dials = ("regularizer.weight", "regularizer.gamma", "model.temperature_init")
  return Study([
    Run(f"lambda{{l:g}}_gamma{{g:g}}_t{{t:g}}", "configs/quickstart.py", small | dict(zip(dials, (l, g, t))))
    for l, g, t in grid
  ])
"""
(SWEEP / "sweep.py").write_text(study.lstrip())
run(f"study --study={SWEEP}/sweep.py --workdir={SWEEP} --jobs=2")

# %% [markdown]
# ## Side by side
#
# Each square is a model: layers downwards, heads to the right, one colour scale for all. The bars count the heads by
# quarter of the range. Yellow heads look at everything alike; λ is what moves them.

# %%
import json

from entropy_attn.report import figures

table = json.loads((SWEEP / "table.json").read_text())
figure = figures.comparison(table["runs"], table["max_entropy"])
figure.set_dpi(70)
display(figure)

# %% [markdown]
# ## The course of training
#
# TensorBoard, where the runtime has it (Colab has): every run of the sweep, loss and entropies over the steps. The
# curves below it are read from the same record, `metrics.jsonl`.

# %%
if shutil.which("tensorboard"):
  get_ipython().run_line_magic("load_ext", "tensorboard")
  get_ipython().run_line_magic("tensorboard", f"--logdir={SWEEP}")
else:
  print("TensorBoard is not installed here; with it: tensorboard --logdir=" + str(SWEEP))

# %%
import matplotlib.pyplot as plt
import numpy as np

from entropy_attn.report import style
from entropy_attn.run import metrics

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for i, row in enumerate(table["runs"]):
  course = metrics.read(SWEEP / row["folders"][0], "train")
  steps, colour = [record["step"] for record in course], f"C{i}"
  left.plot(steps, [record["loss"] for record in course], color=colour, label=row["name"])
  right.plot(steps, [np.mean(record["entropy_L"]) for record in course], color=colour)
left.set(xlabel="step", ylabel="loss (nats a token)")
right.set(xlabel="step", ylabel="mean entropy of all heads (nats)")
figure.legend(loc="outside right upper", fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# ## One model, token by token
#
# The best of them, loaded: `entropy_attn.load` gives its config, its weights and its tokenizer. Each column is a token
# of `TEXT`, each row a head: dark where that head, at that token, reads few of the tokens before it. The first columns
# are dark for all, since there is little to read yet: the ceiling at the n-th token is log n.

# %%
import entropy_attn
from entropy_attn.model import GPT

finished = [row for row in table["runs"] if row["perplexity"] is not None]
best = min(finished, key=lambda row: row["perplexity"])
RUN = SWEEP / best["folders"][0]
trained = entropy_attn.load(RUN)
ids = trained.tokenizer.encode_batch([TEXT])[0][: trained.config.model.context_length]
logits, out = jax.jit(GPT(trained.config).apply)(trained.variables, np.array([ids]))
entropy_LxTxH = np.asarray(out["entropy"])[:, 0]
rows = entropy_LxTxH.transpose(0, 2, 1).reshape(-1, len(ids))

figure, axes = plt.subplots(figsize=(max(6, 0.22 * len(ids)), 4), layout="constrained")
image = axes.imshow(rows, cmap=style.CMAP, vmin=0, vmax=np.log(len(ids)), aspect="auto", interpolation="nearest")
words = [repr(trained.tokenizer.decode([i]))[1:-1].replace(" ", "·") for i in ids]
axes.set_xticks(range(len(ids)), words, rotation=90, fontsize=7, family="monospace")
heads = trained.config.model.num_heads
axes.set_yticks(range(len(rows)), [f"L{i // heads}H{i % heads}" for i in range(len(rows))], fontsize=7)
figure.colorbar(image, label="entropy (nats)", pad=0.01)
axes.set_title(f"{best['name']}: PPL {best['perplexity']:.1f}", loc="left", fontsize=10)
plt.show()

# %% [markdown]
# ## Sample from it
#
# After so few steps it has learned indentation, quotes and brackets, and no sense.

# %%
run(f"generate --checkpoint={RUN} --prompt={shlex.quote(PROMPT)} --tokens=40 --temperature=0.7 --seed=0")

# %% [markdown]
# ## Its price, privately
#
# Bytes, rounds and time of the same model as a computation of two parties, neither of whom sees what the other holds:
# predicted, in seconds, without running it. What is done before there is a prompt is told apart from what waits for it.

# %%
run(f"private.cost --checkpoint={RUN}")
