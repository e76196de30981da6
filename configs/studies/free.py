"""Beyond the paper: what costs nothing in private inference, since it folds into plain weights or ends with training.

    python -m entropy_attn.study --study=configs/studies/free.py --workdir=runs/free --jobs=2

Which of it brings a softmax-only model, at the private price of SM+ScFuFFN, to the perplexity of SM+LN+G trained as
long: sigma-reparametrisation (Zhai et al. 2023); Muon against AdamW, for the baseline too; other starts of the residual
scaling; depth-scaled initial weights; value residuals; distillation from the baseline of this study, of its logits and
of its heads' entropies; a curriculum that removes norm and activation within the first half of training; and AERO's
rows: a strength a head, and the deeper half of the FFNs removed (which saves no bytes, since all are eliminated).
All but ereg, the published row, have a temperature a head, which folds; one a position has to be sent.
smoke: seconds a run. small: the quick setting as it is, one seed, 19 runs: just under an hour on two quiet cores with
--jobs=2, computed from the quickstart's time; --seeds=3 (2.9 h) before a claim rests on it. paper: CodeParrot, T = 128,
about 15 h on one H100, computed.
`together` is taken apart in recipes.py.
Published: none of it for this model but its baselines; AERO's k=6 of 12 removed 3.25 with regularisation (T = 128).
"""

from entropy_attn.study import Study, scales

PER_HEAD = {"model.temperature": "per_head"}
SIGMA = {"model.reparam": "sigma", "model.reparam_targets": "qkvo+ffn"}
MUON = {"optimizer.name": "muon"}
DEPTH = {"model.attention_out_init": "depth_scaled", "model.ffn_out_init": "depth_scaled"}
DISTILLED = {"distill.teacher": "{folder:baseline}", "distill.weight": 0.5, "distill.temperature": 2.0}
ENTROPIES = {"distill.teacher": "{folder:baseline}", "distill.entropy_weight": 0.164}  # the regulariser's on a mean
CURRICULUM = {"curriculum.until": 0.5, "curriculum.norm": "layernorm", "curriculum.activation": "gelu"}
REMOVED = {"smoke": 1, "small": 3, "paper": 6}  # half of the layers


def get_study(scale):
  rows = {
    "baseline": ("ln_gelu", {}),
    "baseline_muon": ("ln_gelu", MUON),
    "scfuffn": ("scfuffn", {}),
    "ereg": ("ereg", {}),
    "ereg_per_head": ("ereg", PER_HEAD),
    "sigma": ("scfuffn", SIGMA),
    "ereg_sigma": ("ereg", PER_HEAD | SIGMA),
    "muon": ("scfuffn", MUON),
    "ereg_muon": ("ereg", PER_HEAD | MUON),
    "alpha_large": ("ereg", PER_HEAD | {"model.alpha_init": 4.0}),
    "rezero": ("ereg", PER_HEAD | {"model.alpha_init": 100.0}),
    "depth_scaled": ("ereg", PER_HEAD | DEPTH),
    "value_residual": ("ereg", PER_HEAD | {"model.value_residual": "fixed"}),
    "distilled": ("scfuffn_t", PER_HEAD | DISTILLED),
    "distilled_entropies": ("scfuffn_t", PER_HEAD | DISTILLED | ENTROPIES),
    "curriculum": ("scffn", CURRICULUM),
    "per_head_strengths": ("ereg", PER_HEAD | {"regularizer.strengths": "per_head"}),
    "half_the_ffns": ("ereg", PER_HEAD | {"model.ffns_removed": REMOVED[scale]}),
    "together": ("ereg", PER_HEAD | SIGMA | MUON | DISTILLED),
  }
  listed = [
    scales.row(architecture, scale, name=name, overrides=overrides, seeds=(0,))
    for name, (architecture, overrides) in rows.items()
  ]
  against = [name for name in rows if name not in ("baseline", "baseline_muon", "ereg_per_head")]
  pairs = [(name, "ereg_per_head") for name in against] + [("together", "baseline"), ("baseline_muon", "baseline")]
  return Study(listed, figures=("pareto",), baseline="baseline", pairs=pairs)
