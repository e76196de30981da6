"""The best softmax-only model at the private price of SM+ScFuFFN: `together` of free.py taken apart, and beyond it.

    python -m entropy_attn.study --study=configs/studies/recipes.py --workdir=runs/recipes --jobs=2

together has a temperature a head, the entropy penalty, sigma-reparametrisation of all its linears, Muon, and learns
half from the logits of the baseline. Five rows leave one of these out; twice_as_long has the steps in place of the
teacher, whose training comes on top; the others exchange a part for what does well alone: one threshold for all heads,
a temperature that cannot cross zero without the penalty, a curriculum from LayerNorm and GELU, with and without the
penalty. baseline_sigma_muon is the baseline with what serves it as well.
smoke: seconds a run. small: the quick setting, three seeds, 39 runs: about 2.3 hours on two quiet cores with --jobs=2,
computed from the quickstart's time; --seeds=1 in 50 minutes. paper: CodeParrot, T = 128, about 12 h on one H100,
computed.
Published: none of it but its baseline, PPL 2.69.
"""

from entropy_attn.study import Study, scales

PER_HEAD = {"model.temperature": "per_head"}
SIGMA = {"model.reparam": "sigma", "model.reparam_targets": "qkvo+ffn"}
MUON = {"optimizer.name": "muon"}
DISTILLED = {"distill.teacher": "{folder:baseline}", "distill.weight": 0.5, "distill.temperature": 2.0}
ALL = PER_HEAD | SIGMA | MUON | DISTILLED
CURRICULUM = {
  "model.ffn": "mlp", "curriculum.until": 0.5, "curriculum.norm": "layernorm", "curriculum.activation": "gelu",
}  # fmt: skip
TWICE = {"smoke": 12, "small": 1200, "paper": 64_600}


def get_study(scale):
  rows = {
    "baseline": ("ln_gelu", {}),
    "baseline_sigma_muon": ("ln_gelu", SIGMA | MUON),
    "together": ("ereg", ALL),
    "without_teacher": ("ereg", PER_HEAD | SIGMA | MUON),
    "twice_as_long": ("ereg", PER_HEAD | SIGMA | MUON | {"train.steps": TWICE[scale]}),
    "without_sigma": ("ereg", PER_HEAD | MUON | DISTILLED),
    "without_muon": ("ereg", PER_HEAD | SIGMA | DISTILLED),
    "without_penalty": ("scfuffn_t", ALL),
    "without_temperature": ("ereg", SIGMA | MUON | DISTILLED | {"model.temperature": "none"}),
    "shared_threshold": ("ereg", ALL | {"regularizer.thresholds": "shared"}),
    "log_temperature": ("scfuffn_t", ALL | {"model.temperature_form": "log"}),
    "curriculum": ("scfuffn_t", ALL | CURRICULUM),
    "curriculum_penalty": ("ereg", ALL | CURRICULUM),
  }
  listed = [
    scales.row(architecture, scale, name=name, overrides=overrides) for name, (architecture, overrides) in rows.items()
  ]
  against = [name for name in rows if not name.startswith("baseline") and name != "together"]
  pairs = [("together", "baseline"), ("without_teacher", "baseline"), ("shared_threshold", "baseline_sigma_muon")]
  return Study(listed, figures=("pareto",), baseline="baseline", pairs=pairs + [(name, "together") for name in against])
