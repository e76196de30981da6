# %% [markdown]
# # Entropy-guided attention: a first run
#
# A small language model without LayerNorm and without GELU learns Python from the standard library of this machine's
# own interpreter: nothing is downloaded but the code. Then you see what its attention heads do: the *entropy* of a head
# says over how many earlier tokens it spreads its attention. 0 nats is one token; the ceiling is all of them, evenly.
#
# *Runtime → Run all*. On two CPU cores it takes a few minutes; a GPU or TPU runtime is faster.

# %%
STEPS = 200  # @param {type:"integer"}
PROMPT = "def __init__(self"  # @param {type:"string"}
FOLDER = "runs/quickstart"  # @param {type:"string"}
MORE = ""  # @param {type:"string"}

# %% [markdown]
# `STEPS` of training: 100 show the course of things, 600 are the README's run. `FOLDER` is where the run lands: the
# same folder resumes, another starts anew. `MORE` takes flags of the trainer, such as `--config.model.num_layers=2`.
#
# ## Train
#
# First the text is tokenised and packed (once), then the training step is compiled, then the bar runs. Now and then a
# line tells the validation loss, the perplexity, and how the heads lie in the four quarters of the entropy range.

# %%
run(f"main --config=configs/quickstart.py --workdir={FOLDER} --config.train.steps={STEPS} {MORE}")

# %% [markdown]
# ## See the heads
#
# **Heatmap:** each cell is a head at the last evaluation. Dark blue heads look at few tokens, yellow ones at nearly
# all: a yellow model wastes its heads (*entropic overload*).
#
# **Curves:** each line is a layer over training. Lines that stay at the dashed ceiling have learned nothing to look at;
# lines that drop to zero have collapsed.

# %%
from entropy_attn.report import figures

for figure in figures.run_figures(FOLDER).values():
  figure.set_dpi(80)
  display(figure)

# %% [markdown]
# ## The report
#
# The same run as one page: drag the step, or press *Play*, and choose a head to see its course. `report.html` in the
# run's folder is this page, for any browser.

# %%
show(f"{FOLDER}/report.html", height=1000)

# %% [markdown]
# ## What it writes
#
# So small a model has learned the look of Python, hardly its sense.

# %%
run(f"generate --checkpoint={FOLDER} --prompt={shlex.quote(PROMPT)} --tokens=60 --temperature=0.7 --seed=0")

# %% [markdown]
# ## The attention alone
#
# `dot_product_attention` is a drop-in for `jax.nn.dot_product_attention` that returns the entropy as well. Below, one
# random input and four heads that differ only in their temperature: the lower it is, the sharper the head and the lower
# its entropy. Both results are differentiable.

# %%
import jax.numpy as jnp

from entropy_attn import dot_product_attention

keys = jax.random.split(jax.random.key(0), 3)
q, k, v = (jax.random.normal(key, (1, 64, 4, 32)) for key in keys)  # batch, length, heads, width
temperature = jnp.array([0.1, 0.5, 1.0, 4.0])
out, entropy = dot_product_attention(q, k, v, temperature=temperature, is_causal=True)
print("out", out.shape, "entropy", entropy.shape)
for head, t in enumerate(temperature):
  print(f"head {head}: temperature {t:.1f}, mean entropy {entropy[0, :, head].mean():.2f} nats")
print(f"ceiling: {jnp.log(jnp.arange(1, 65)).mean():.2f} nats")

# %% [markdown]
# ## Next
#
# The other notebooks: `colab_experiment` (sweeps, heads token by token, sampling), `colab_collapse` (why deep heads
# die, and what cures them), `colab_private` (the model on secret text), `colab_inspect` (the heads of GPT-2).
# `configs/` holds the paper's rows, `configs/studies/` its tables.
