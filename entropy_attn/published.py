"""Every figure that the paper printed (arXiv:2501.03489v2): its tables, and what its pictures show in numbers.

Architectures go by their names in `config.ARCHITECTURES`, settings by those of `config.codeparrot` and
`config.languini`. Perplexities are those of the evaluation set; entropies are in nats.
"""

from collections.abc import Mapping
import dataclasses

NAN = float("nan")  # printed as such: training broke down


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of Tables 3, 4, 7 and 8: GPT-2 small's width, one sequence; embedding and vocabulary projection included.

  Attributes:
    table: its number.
    model: the architecture in the paper's notation.
    architecture: the same by its name in `config.ARCHITECTURES`.
    family: of the settings, codeparrot or languini.
    setting: of the family; the first where the table has several budgets of tokens.
    layers, length: L and T.
    perplexities: by setting.
    ffn_flops, attention_flops: billions, two a multiply-add, without embedding and vocabulary projection.
    operations: the nonlinear ones, such as 'SM: 144 × R^{128×128}'; without the final LayerNorm.
    gigabytes: of communication of one private inference, both ways.
    minutes: of one private inference, on 32 threads and a line stated as 100 Mbit/s and 80 ms.
  """

  table: int
  model: str
  architecture: str
  family: str
  setting: str
  layers: int
  length: int
  perplexities: Mapping[str, float]
  ffn_flops: float
  attention_flops: float
  operations: tuple[str, ...]
  gigabytes: float
  minutes: float

  @property
  def name(self) -> str:
    """Fit for a file: 'ln_gelu_L12_T128'."""
    return f"{self.architecture}_L{self.layers}_T{self.length}"


_MODELS = {
  "ln_gelu": "SM+LN+G", "ln_relu": "SM+LN+R", "scfuffn": "SM+ScFuFFN", "ereg": "EReg(SM(t)+ScFuFFN)",
}  # fmt: skip
_HEADS, _WIDTH = 12, 768


def _rows(table, family, settings, layers, length, flops, of_models) -> tuple[Row, ...]:
  """A table's rows.

  Args:
    flops: billions, of the MLPs, the fused FFNs and attention.
    of_models: in the order of _MODELS, (a perplexity for each setting, GB, minutes).
  """
  mlp, fused, attention = flops
  rows = []
  for (architecture, model), (*perplexities, gigabytes, minutes) in zip(_MODELS.items(), of_models, strict=True):
    operations = [f"SM: {layers * _HEADS} × R^{{{length}×{length}}}"]
    if architecture.startswith("ln"):
      activation = {"ln_gelu": "G", "ln_relu": "R"}[architecture]
      operations += [f"LN: {2 * layers} × R^{{{length}×{_WIDTH}}}"]
      operations += [f"{activation}: {layers} × R^{{{length}×{4 * _WIDTH}}}"]
    rows.append(
      Row(
        table, model, architecture, family, settings[0], layers, length, dict(zip(settings, perplexities, strict=True)),
        mlp if architecture.startswith("ln") else fused, attention, tuple(operations), gigabytes, minutes,
      )
    )  # fmt: skip
  return tuple(rows)


ROWS = (
  *_rows(3, "codeparrot", ("T128",), 12, 128, (14.5, 1.8, 7.7), (
    (2.69, 25.32, 8.21), (2.76, 9.44, 6.06), (3.48, 6.43, 4.76), (3.21, 6.43, 4.76),
  )),
  *_rows(4, "languini", ("1.2B", "2.4B", "4.8B"), 12, 512, (58.0, 7.3, 36.2), (
    (25.71, 23.32, 21.29, 145.24, 30.74), (26.06, 23.55, 21.58, 81.71, 23.54),
    (33.77, 30.82, 28.59, 69.68, 19.44), (31.54, 28.70, 26.55, 69.68, 19.44),
  )),
  *_rows(7, "codeparrot", ("T256",), 12, 256, (29.0, 3.6, 16.3), (
    (2.35, 58.51, 16.57), (2.41, 26.73, 12.59), (3.03, 20.72, 10.45), (2.92, 20.72, 10.45),
  )),
  *_rows(8, "codeparrot", ("L18",), 18, 128, (21.7, 2.7, 11.6), (
    (2.56, 37.17, 10.77), (2.63, 13.34, 8.04), (3.24, 8.83, 6.07), (3.13, 8.83, 6.07),
  )),
)  # fmt: skip

# Table 2: perplexities by architecture, CodeParrot, T128.
TABLE_2 = {
  "ln_gelu": 2.69, "ln_relu": 2.76, "ln": 3.38, "gelu": 3.20, "relu": 2.94, "sm": NAN, "scfuffn": 3.48, "ereg": 3.21,
}  # fmt: skip

# Table 5: perplexities by what is normalised, of weight and of spectral normalisation, CodeParrot, T128.
TABLE_5 = {
  "wnorm": {"qk": 3.89, "ffn": 3.64, "qk+ffn": 3.88, "qkv+ffn": 3.93, "qkvo+ffn": 3.98},
  "snorm": {"qk": 4.25, "ffn": 3.63, "qk+ffn": 4.23, "qkv+ffn": 4.26, "qkvo+ffn": 4.34},
}

# Table 6: perplexities of the three ways to a stable softmax-only model, CodeParrot, T128.
TABLE_6 = {"wnorm": 3.640, "snorm": 3.624, "scffn": 3.478}

# The Max of the head bins, one for all models compared: the largest entropy of a head that was seen.
MAX_ENTROPY = 3.87

# Figure 2a: per cent of the heads in each quarter of Max, of SM in whole numbers; of others the highest quarter alone.
FIGURE_2A_SM = (33, 10, 12, 45)
FIGURE_2A_TOP = {"gelu": 58, "relu": 23, "sm": 45}

# Figure 3f: entropy of each head of SM at the end of training, CodeParrot, T128; rows are layers.
FIGURE_3F = (
  (3.57, 3.63, 3.67, 3.55, 3.65, 3.65, 3.59, 3.41, 3.75, 3.47, 3.54, 3.56),
  (3.84, 3.85, 3.85, 3.83, 3.84, 3.83, 3.85, 3.85, 3.86, 3.86, 3.83, 3.87),
  (3.82, 3.77, 3.86, 3.74, 3.75, 3.85, 3.85, 3.83, 3.86, 3.86, 3.83, 3.83),
  (3.69, 3.76, 3.75, 3.83, 3.78, 3.83, 3.83, 3.84, 3.75, 3.83, 3.73, 3.82),
  (3.69, 3.81, 3.73, 3.81, 3.80, 3.75, 3.85, 3.66, 3.70, 3.48, 3.83, 3.78),
  (2.73, 2.22, 2.59, 2.86, 3.41, 3.06, 3.27, 1.19, 3.02, 2.40, 1.31, 3.15),
  (2.19, 1.77, 1.64, 2.55, 2.38, 1.90, 1.84, 2.52, 2.07, 2.31, 1.57, 2.80),
  (1.88, 2.12, 2.68, 2.90, 1.09, 2.87, 1.61, 1.33, 2.07, 2.09, 1.73, 1.32),
  (0.99, 0.36, 0.54, 0.50, 0.78, 0.33, 0.22, 0.36, 0.36, 0.49, 0.44, 0.88),
  (0.15, 0.25, 0.27, 0.25, 0.17, 0.17, 0.18, 0.15, 0.17, 0.19, 0.12, 0.14),
  (0.06, 0.15, 0.07, 0.06, 0.03, 0.06, 0.05, 0.04, 0.08, 0.05, 0.05, 0.05),
  (0.04, 0.04, 0.05, 0.04, 0.05, 0.04, 0.05, 0.05, 0.05, 0.04, 0.05, 0.04),
)

# Figure 6a: the learned threshold weights theta, CodeParrot, T128; rows are layers.
FIGURE_6A = (
  (0.43, 0.44, 0.42, 0.45, 0.44, 0.49, 0.43, 0.46, 0.43, 0.43, 0.43, 0.40),
  (0.42, 0.36, 0.35, 0.38, 0.41, 0.39, 0.31, 0.36, 0.43, 0.38, 0.39, 0.46),
  (0.33, 0.52, 0.34, 0.41, 0.33, 0.35, 0.38, 0.40, 0.43, 0.37, 0.34, 0.42),
  (0.31, 0.32, 0.31, 0.31, 0.34, 0.45, 0.40, 0.35, 0.29, 0.37, 0.32, 0.52),
  (0.30, 0.29, 0.30, 0.28, 0.27, 0.32, 0.30, 0.32, 0.34, 0.33, 0.34, 0.42),
  (0.33, 0.28, 0.36, 0.35, 0.32, 0.26, 0.37, 0.39, 0.30, 0.34, 0.47, 0.36),
  (0.31, 0.33, 0.26, 0.30, 0.20, 0.28, 0.32, 0.30, 0.31, 0.31, 0.26, 0.34),
  (0.32, 0.30, 0.28, 0.34, 0.39, 0.33, 0.23, 0.35, 0.32, 0.29, 0.34, 0.35),
  (0.36, 0.29, 0.35, 0.30, 0.35, 0.34, 0.33, 0.34, 0.34, 0.28, 0.35, 0.34),
  (0.49, 0.36, 0.34, 0.33, 0.35, 0.39, 0.38, 0.37, 0.35, 0.34, 0.33, 0.35),
  (0.37, 0.36, 0.38, 0.49, 0.40, 0.46, 0.48, 0.38, 0.33, 0.41, 0.48, 0.45),
  (0.51, 0.43, 0.40, 0.42, 0.34, 0.45, 0.41, 0.41, 0.44, 0.42, 0.51, 0.47),
)

# Figure 7: per cent of the heads in the highest quarter of Max, by gamma; at 0.15 and below.
FIGURE_7 = {0.15: 0.7, 0.20: 2.08, 0.25: 3.47, 0.30: 6.25}

# Per cent of the heads in each quarter of Max, as the values of Figure 3 give them; Figure 2a draws the same.
FIGURE_3_SHARES = {"ln_gelu": (4.2, 13.9, 73.6, 8.3), "ln_relu": (5.6, 16.7, 74.3, 3.5), "sm": (32.6, 9.7, 12.5, 45.1)}


def find(family: str, setting: str, architecture: str, targets: str = "ffn", gamma: float = 0.2) -> dict | None:
  """What was printed of an architecture at a setting, ready for JSON; None where nothing was.

  Args:
    targets: of wnorm and snorm, what is normalised.
    gamma: of ereg.

  Returns:
    perplexity (None where none was printed, or it was NaN), diverged (whether it was), head_shares (four fractions, or
    None), top_share (of the heads in the highest quarter, or None), gigabytes and minutes of a private inference.
  """
  rows = [r for r in ROWS if (r.family, r.architecture) == (family, architecture) and setting in r.perplexities]
  perplexity, top, shares = None, None, None
  if (family, setting) == ("codeparrot", "T128"):
    perplexity = TABLE_5[architecture].get(targets) if architecture in TABLE_5 else TABLE_2.get(architecture)
    perplexity = TABLE_6.get(architecture) if perplexity is None else perplexity
    shares = FIGURE_3_SHARES.get(architecture)
    top = shares[3] if shares else FIGURE_2A_TOP.get(architecture)
    if architecture == "ereg":
      top = FIGURE_7[0.15] if gamma <= 0.15 else FIGURE_7.get(gamma)
  elif rows:
    perplexity = rows[0].perplexities[setting]
  if architecture == "ereg" and gamma != 0.2:  # Figure 7 alone shows others
    perplexity, rows = None, []
  diverged = perplexity is not None and perplexity != perplexity
  found = {
    "perplexity": None if diverged else perplexity,
    "diverged": diverged,
    "head_shares": [round(share / 100, 3) for share in shares] if shares else None,
    "top_share": None if top is None else round(top / 100, 4),
    "gigabytes": rows[0].gigabytes if rows else None,
    "minutes": rows[0].minutes if rows else None,
  }
  return found if any(value not in (None, False) for value in found.values()) else None
