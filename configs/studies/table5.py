"""Table 5: weight and spectral normalisation of each choice of linears in the softmax-only model, CodeParrot, T = 128.

    python -m entropy_attn.study --study=configs/studies/table5.py --workdir=runs/table5 --jobs=2

smoke: seconds a run. small: the quick setting with half its batch (600 steps of 2,048 tokens), three seeds, 30 runs:
about 45 minutes on two quiet cores with --jobs=2, computed from the quickstart's time. paper: about 11 h on one H100,
computed.
Published (paper), PPL of weight / spectral: QK 3.89 / 4.25, FFN 3.64 / 3.63, QK+FFN 3.88 / 4.23, QKV+FFN 3.93 / 4.26,
QKVO+FFN 3.98 / 4.34.
"""

from entropy_attn.config import CHOICES
from entropy_attn.study import Study, scales

SMALL = {"train.batch_size": 16}


def get_study(scale):
  rows = [
    scales.row(architecture, scale, name=f"{architecture}_{targets}", targets=targets, small=SMALL)
    for architecture in ("wnorm", "snorm")
    for targets in CHOICES["model.reparam_targets"]
  ]
  return Study(rows, baseline="wnorm_ffn", pairs=(("wnorm_ffn", "wnorm_qk"), ("snorm_ffn", "snorm_qk")))
