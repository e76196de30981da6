"""What the paper published of private inference: Tables 3, 4, 7 and 8."""

from collections.abc import Mapping
import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
  """One row: GPT-2 small's width, embedding and vocabulary projection included.

  Attributes:
    family, setting, fields: of its config.
    gigabytes: of communication, both ways.
    minutes: of one inference.
  """

  table: int
  model: str
  family: str
  setting: str
  layers: int
  length: int
  fields: Mapping[str, object]
  gigabytes: float
  minutes: float

  @property
  def slug(self) -> str:
    """Fit for a file's name: 'ln_gelu_L12_T128'."""
    return f"{_SLUGS[self.model]}_L{self.layers}_T{self.length}"


_LINEAR = {"norm": "none", "activation": "identity", "ffn": "fused", "residual_scaling": True}
_MODELS = {
  "SM+LN+G": {},
  "SM+LN+R": {"activation": "relu"},
  "SM+ScFuFFN": _LINEAR,
  # A temperature of each head: one of each position, as released, would cost, and the published cost is the same.
  "EReg(SM(t)+ScFuFFN)": _LINEAR | {"temperature": "per_head", "temperature_init": 1e-2},
}
_SLUGS = {
  "SM+LN+G": "ln_gelu", "SM+LN+R": "ln_relu", "SM+ScFuFFN": "scfuffn", "EReg(SM(t)+ScFuFFN)": "ereg",
}  # fmt: skip
# Of each table's models in that order: GB and minutes.
_TABLES = (
  (3, "codeparrot", "T128", 12, 128, ((25.32, 8.21), (9.44, 6.06), (6.43, 4.76), (6.43, 4.76))),
  (4, "languini", "1.2B", 12, 512, ((145.24, 30.74), (81.71, 23.54), (69.68, 19.44), (69.68, 19.44))),
  (7, "codeparrot", "T256", 12, 256, ((58.51, 16.57), (26.73, 12.59), (20.72, 10.45), (20.72, 10.45))),
  (8, "codeparrot", "L18", 18, 128, ((37.17, 10.77), (13.34, 8.04), (8.83, 6.07), (8.83, 6.07))),
)
ROWS = tuple(
  Row(table, model, family, setting, layers, length, fields, *figures)
  for table, family, setting, layers, length, of_models in _TABLES
  for (model, fields), figures in zip(_MODELS.items(), of_models, strict=True)
)
