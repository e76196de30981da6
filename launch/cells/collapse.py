# %% [markdown]
# # Entropy collapse, and its cure
#
# Take LayerNorm and GELU out of a deep GPT-2 and its last heads die: each looks at one token alone, whatever the text,
# with an entropy of zero. Its first heads do the opposite, they look at all tokens alike. Here three models of twelve
# layers see the same text at the same rate:
#
# - **SM**: softmax attention as the only nonlinearity;
# - **SM+LN**: with LayerNorm, the costly remedy;
# - **EReg(SM(t)+ScFuFFN)**: learnable temperatures, a scaled FFN and the entropy penalty, which cost next to nothing
#   privately.
#
# *Runtime → Run all*: about five minutes on two CPU cores.

# %%
STEPS = 120  # @param {type:"integer"}
RATE = 2e-3  # @param {type:"number"}
FOLDER = "runs/collapse"  # @param {type:"string"}

# %% [markdown]
# ## Train all three
#
# They are rows of the study `configs/studies/collapse.py`, trained two at a time. Another `STEPS` or `RATE` needs
# another `FOLDER`: a run's folder keeps what it was trained with.

# %%
pathlib.Path("three.py").write_text("""
import dataclasses
from entropy_attn.study import runs

def get_study(scale):
  study = runs.load_study("configs/studies/collapse.py")
  three = [run for run in study.runs if run.name in ("sm_hot", "ln_hot", "ereg_hot")]
  return dataclasses.replace(study, runs=three, figures=(), baseline="ln_hot")
""")
more = f"--override=train.steps={STEPS} --override=optimizer.learning_rate={RATE}"
run(f"study --study=three.py --workdir={FOLDER} --jobs=2 {more}")

# %% [markdown]
# ## What became of the heads
#
# Layers downwards, heads to the right. In SM the deepest rows are nearly black: collapsed. The others have none.

# %%
import json

from entropy_attn import entropy
from entropy_attn.report import figures

table = json.loads(pathlib.Path(FOLDER, "table.json").read_text())
figure = figures.comparison(table["runs"], table["max_entropy"])
figure.set_dpi(80)
display(figure)
for row in table["runs"]:
  dead = entropy.collapsed_heads(row["entropy_LxH"], table["max_entropy"])
  print(f"{row['architecture']}: PPL {row['perplexity']:.0f}, {len(dead)} collapsed heads")
  print(f"  {' '.join(dead) or 'none'}\n")

# %% [markdown]
# ## When it happened
#
# Each line is a layer. SM's deep layers fall to zero within some forty steps, while the loss still falls: nothing but
# the entropies tells it. What has collapsed hardly comes back.

# %%
for row in table["runs"]:
  figure = figures.run_figures(pathlib.Path(FOLDER, row["folders"][0]))["entropy_layers"]
  figure.set_dpi(60)
  display(figure)

# %% [markdown]
# ## All of it, to be explored
#
# Choose two runs, drag the step, point at a head.

# %%
show(f"{FOLDER}/report.html", height=1000)

# %% [markdown]
# ## Next
#
# All nine runs, 250 steps each: `python -m entropy_attn.study --study=configs/studies/collapse.py
# --workdir=runs/collapse` (twelve minutes). What of the cure cures: `docs/results.md`.
