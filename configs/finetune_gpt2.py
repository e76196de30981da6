"""A trained GPT-2 becomes a reduced model: EReg(SM(t)+ScFFN), without LayerNorm in its blocks and without GELU.

    python -m entropy_attn.main --config=configs/finetune_gpt2.py --workdir=runs/finetune_gpt2 --config.data.path=TEXTS

It starts as the model that --config.init.source names (a Hugging Face folder, a Hub name or a run's folder), exactly.
Norm and activation fade to a constant scale and the identity within the first half of the steps; the regulariser keeps
its heads in range; the original teaches it all the way. Temperatures and what is left of the norms fold into plain
weights, and the FFNs vanish in private inference, as those of EReg(SM(t)+ScFuFFN) do. docs/finetune.md has figures.

Argument: gpt2 (default), any text, T=128, a quarter of an hour on one H100; computed at 40 % of its bf16 peak, not
measured.
quick, 200 steps at a laptop's size on the machine's own standard library, from SM+LN+G, which is trained first:

    python -m entropy_attn.main --config=configs/codeparrot_ln_gelu.py:quick --config.train.steps=400
    python -m entropy_attn.main --config=configs/finetune_gpt2.py:quick

Time: 7 and 18 minutes on two cores with other work on them. Measured PPL: the source 91.0, the reduced model 77.2, one
seed.
"""

from entropy_attn import config
from entropy_attn.errors import check_choice

SOURCES = {"gpt2": "gpt2", "quick": "runs/codeparrot_ln_gelu_quick"}


def get_config(setting: str = "gpt2"):
  check_choice("the config's argument", setting, SOURCES)
  c = config.codeparrot("quick" if setting == "quick" else "T128", "ereg")
  c.model.update(ffn="mlp", bias="all", temperature="per_head", temperature_init=1.0, embedding_dropout=0.0)
  c.curriculum.update(until=0.5, norm_bias="kept")
  c.init.source = c.distill.teacher = SOURCES[setting]
  if setting == "quick":
    c.train.steps = 200
  else:
    c.model.update(vocab_size=50_257, gelu="tanh")
    c.optimizer.learning_rate = 3e-4
    c.train.steps = 5_000
    c.data.update(name="text_files", packing="concat")
  return c
