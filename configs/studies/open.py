"""What the paper leaves open about entropy guidance: each choice of it changed alone, from EReg(SM(t)+ScFuFFN).

    python -m entropy_attn.study --study=configs/studies/open.py --workdir=runs/open --jobs=2

Which part of the gain is the temperature's (temperature_only, regulariser_only, neither); a temperature a head or a
position; its sign (direct may cross zero, log cannot), with and without the regulariser; the penalty's two reductions,
head_mean at the published lambda and at the weight that the summed form has on a mean (1e-5 × 128 × 128 = 0.164);
thresholds learned, shared by all heads, fixed; lambda a tenth and ten times; above the threshold alone; E_max of what a
causal row can reach.
smoke: seconds a run. small: the quick setting as it is, one seed, 17 runs: about 50 minutes on two quiet cores with
--jobs=2, computed from the quickstart's time; --seeds=3 (2.5 h) before a difference of a few per cent is believed.
paper: CodeParrot, T = 128, about 13 h on one H100, computed.
Published: nothing of these but ereg (PPL 3.21) and neither (3.48).
"""

from entropy_attn.study import Study, scales

ROWS = {
  "ereg": ("ereg", {}),
  "temperature_only": ("scfuffn_t", {}),
  "regulariser_only": ("ereg", {"model.temperature": "none"}),
  "neither": ("scfuffn", {}),
  "per_head": ("ereg", {"model.temperature": "per_head"}),
  "per_head_temperature_only": ("scfuffn_t", {"model.temperature": "per_head"}),
  "log": ("ereg", {"model.temperature_form": "log"}),
  "log_temperature_only": ("scfuffn_t", {"model.temperature_form": "log"}),
  "head_mean": ("ereg", {"regularizer.reduction": "head_mean"}),
  "head_mean_same_weight": ("ereg", {"regularizer.reduction": "head_mean", "regularizer.weight": 0.164}),
  "thresholds_shared": ("ereg", {"regularizer.thresholds": "shared"}),
  "thresholds_fixed": ("ereg", {"regularizer.thresholds": "fixed"}),
  "lambda_tenth": ("ereg", {"regularizer.weight": 1e-6}),
  "lambda_third": ("ereg", {"regularizer.weight": 3e-6}),
  "lambda_ten": ("ereg", {"regularizer.weight": 1e-4}),
  "upper": ("ereg", {"regularizer.sides": "upper"}),
  "causal_ceiling": ("ereg", {"regularizer.ceiling": "causal"}),
}


def get_study(scale):
  rows = [
    scales.row(architecture, scale, name=name, overrides=overrides, seeds=(0,))
    for name, (architecture, overrides) in ROWS.items()
  ]
  against = [name for name in ROWS if name not in ("ereg", "neither")]
  return Study(rows, baseline="ereg", pairs=[(name, "ereg") for name in against])
