"""What both parties know of a private model: its architecture, and what was done to it to make it cheap."""

from collections.abc import Mapping
import dataclasses
import json
import re

from entropy_attn import sizes
from entropy_attn.errors import UserError, check_choice
from entropy_attn.private.program.squares import Squares

ON_OFF = (
  "fold", "one_product", "triangle", "diagonal", "last_position", "join_heads", "join_queries",
  "eliminate_ffns", "clamp", "checked", "one_check", "causal_blocks",
)  # fmt: skip
CHOICES = {
  "gelu": ("squares", "exact"),
  "exponential": ("squares", "engine"),
  "softmax_ring": ("32", "64"),
  "maximum": ("pairs", "fours"),
  "activation_ring": ("auto", "32", "64"),
  "division": ("auto", "narrow", "late", "early"),
  "embedding": ("selected", "one_hot"),
}

REVEALS = ("argmax", "top_k", "logits")
TOP_K, TOP_K_MOST = 40, 64


@dataclasses.dataclass(frozen=True)
class Transforms:
  """What is done to a model before it runs privately. All are exact, but for exponential, gelu and uniform_heads."""

  fold: bool = True  # scales, temperatures, alpha, beta, LayerNorm gains and linear FFNs go into the weights
  one_product: bool = True  # queries, keys and values by one product
  triangle: bool = True  # row maximum and exponential of the causal triangle alone
  diagonal: bool = False  # rows are scaled by a product with a diagonal matrix: fewer bytes, far more computation
  last_position: bool = True  # the last layer's queries, and the logits, of the last position alone
  join_heads: bool = True  # one query: its heads' scores and values by one product each
  join_queries: bool = True  # with join_heads, of several queries, too: as many heads at a time as cost least
  causal_blocks: bool = True  # blocks of queries times the keys that they may see alone, where that costs less
  eliminate_ffns: bool = True  # linear FFNs go into the basis of the residual stream, where there is no norm
  condition_bound: float = 1e4  # an FFN stays where the basis would pass this condition number
  clamp: bool = True  # exponents below the fitted range are set to its end
  checked: bool = True  # count rows that no softmax or final LayerNorm gives: the result is then refused
  one_check: bool = True  # all layers' rows are checked at once, with the final LayerNorm's; where there is fold
  exponential: str = "squares"  # fitted chains of squares; engine: its (1 + x/2^n)^(2^n)
  embedding: str = "selected"  # the client makes a short one-hot row and bits; one_hot: a whole row
  gelu: str = "squares"  # exact: the engine's own erf or tanh
  softmax_ring: str = "32"  # bits of the ring in which maximum and exponential are computed
  maximum: str = "pairs"  # of a row. fours: four entries at a time, fewer rounds and far more bytes
  activation_ring: str = "auto"  # of ReLU and of GELU by squares; auto: 32 where what they read has room there
  uniform_heads: str = ""  # LAYER.HEAD+…: heads whose probabilities are taken to be all alike
  division: str = "auto"  # by row sums. narrow: there; late: of mixed values; early: as written; auto: narrow or late

  def exactly(self) -> "Transforms":
    """These transforms without their approximations: what a private inference is compared with."""
    return dataclasses.replace(
      self, exponential="engine", softmax_ring="64", activation_ring="64", division="late", clamp=False, gelu="exact",
      uniform_heads="",
    )  # fmt: skip

  def uniform_in(self, layer: int) -> tuple[int, ...]:
    """The heads of a layer that are taken for uniform, in order."""
    return tuple(sorted({head for l, head in _uniform(self.uniform_heads) if l == layer}))

  @property
  def narrow_activation(self) -> bool:
    """Whether ReLU and GELU by squares are computed in the 32-bit ring; the engine's own settings have none."""
    return self.activation_ring == "32" or (self.activation_ring == "auto" and self.exponential == "squares")


STOCK = Transforms(
  embedding="one_hot", fold=False, one_product=False, triangle=False, diagonal=False,
  last_position=False, join_heads=False, join_queries=False, causal_blocks=False, eliminate_ffns=False, clamp=False,
  checked=False, one_check=False, exponential="engine", gelu="exact", softmax_ring="64", activation_ring="64",
  division="early",
)  # fmt: skip


def recorded(fields: Mapping) -> Transforms:
  """Those of a record, which may be older than some of them: what it does not name was not done."""
  return dataclasses.replace(STOCK, **fields)


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """What both parties know of one block.

  Attributes:
    ffn: none: eliminated, or the model has none there; linear: x M + c; residual: x + N(x) W + b;
      mlp: x + act(N(x) W + b) W' + b'.
    activation: identity, relu, gelu_squares, gelu_erf or gelu_tanh.
    biases: names of the linears that have one: qkv, o, ffn, ffn_out.
    temperature: whether queries are divided by a temperature of each position.
    scaled: names among alpha and beta that are still variables.
    exponential: of the softmax; None: the engine's own.
    score_scale: what multiplies the scores still; 1 where it is in the weights.
  """

  ffn: str
  activation: str
  biases: tuple[str, ...]
  temperature: bool
  scaled: tuple[str, ...]
  exponential: Squares | None
  score_scale: float


@dataclasses.dataclass(frozen=True)
class Spec:
  """The whole model. Programs of any length are built from it (`build.build`).

  Attributes:
    head_basis: whether the final state goes back to the model's own basis.
    exp_iterations: of the engine's own exponential.
    reveal: what the client learns of the last position: one of REVEALS.
    top_k: how many of the largest logits, with reveal = top_k.
    value_residual: whether the first layer's values are added to all others'.
    epsilon: added to the variance in every LayerNorm.
  """

  num_heads: int
  d_model: int
  ffn_width: int
  vocab_size: int
  context_length: int
  norm: bool
  layers: tuple[LayerSpec, ...]
  head_basis: bool
  head_biases: tuple[str, ...]
  transforms: Transforms
  exp_iterations: int = 8
  reveal: str = "logits"
  top_k: int = TOP_K
  value_residual: bool = False
  epsilon: float = 1e-5

  def revealing(self, reveal: str, top_k: int = TOP_K) -> "Spec":
    """The same model, of whose last position the client learns something else.

    Raises:
      UserError: for what is none of REVEALS, or more than the vocabulary has or than are chosen at most.
    """
    check_choice("reveal", reveal, REVEALS)
    most = min(TOP_K_MOST, self.vocab_size)
    if reveal == "top_k" and (type(top_k) is not int or not 1 <= top_k <= most):
      raise UserError(f"top_k={top_k} must be between 1 and {most}: --reveal=logits reveals all")
    return dataclasses.replace(self, reveal=reveal, top_k=top_k)

  def to_json(self) -> str:
    """The spec as a text that `from_json` reads; the same text for an equal spec."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text: str) -> "Spec":
    """The spec that a text of `to_json` holds.

    Raises:
      UserError: if it holds none.
    """
    try:
      fields = json.loads(text)
      layers = tuple(_layer(layer) for layer in fields.pop("layers"))
      transforms = Transforms(**fields.pop("transforms"))
      fields["head_biases"] = tuple(fields["head_biases"])
      spec = cls(layers=layers, transforms=transforms, **fields)
      return spec.revealing(spec.reveal, spec.top_k)
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"not the description of a private model: {type(error).__name__}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the engine runs a model's programs; both parties must have the same.

  Attributes:
    exp_iterations: n of its exponential, (1 + x/2^n)^(2^n); 1 makes it a square.
    lsb_error: whether products in the narrow ring are the engine's approximate ones. They are cheaper, but now and then
      one ciphertext of some tens of thousands comes out as noise, in all its 8,192 numbers: the engine drops so many
      bits of its answers that rounding has too little room, and one wrong coefficient reaches every slot. So they are
      used only where each is verified (`parties.session`).
    oblivious_transfer: its implementation.
  """

  exp_iterations: int
  lsb_error: bool
  oblivious_transfer: str

  @classmethod
  def of(cls, spec: Spec, *, prepared: bool = False) -> "Settings":
    """Those of a model: the engine's own where its exponential is, the cheap ones else.

    Args:
      prepared: whether all products of the narrow ring are made ahead, where they are verified.
    """
    if spec.transforms.exponential == "engine":
      return cls(spec.exp_iterations, False, "YACL_Ferret")
    return cls(1, prepared, "EMP_Ferret")


def of_config(c, transforms: Transforms, exponentials: tuple[Squares, ...] = ()) -> Spec:
  """What a config alone tells of its private form: every FFN that may vanish vanishes, and nothing has a bias.

  Args:
    c: the model group.
    exponentials: of each layer's softmax; empty with transforms.exponential = engine.

  Raises:
    UserError: where transforms contradict the architecture or each other.
  """
  check(transforms, c)
  t = transforms
  linear = c.norm == "none" and c.activation == "identity"
  fused = c.ffn == "fused" or (t.fold and c.activation == "identity")
  if t.fold and linear:
    ffn = "none" if t.eliminate_ffns else "linear"
  else:
    ffn = "residual" if fused else "mlp"
  activation = c.activation
  if activation == "gelu":
    activation = "gelu_squares" if t.gelu == "squares" else f"gelu_{c.gelu}"
  scaled = ()
  if c.residual_scaling and ffn in ("residual", "mlp"):
    scaled = ("beta",) if t.fold else ("alpha", "beta")
  layer = LayerSpec(
    ffn=ffn,
    activation=activation,
    biases=(),
    temperature=c.temperature == "per_head_position" or (c.temperature == "per_head" and not t.fold),
    scaled=scaled,
    exponential=None,
    score_scale=1.0,
  )
  attention_alone = dataclasses.replace(layer, ffn="none", activation="identity", scaled=())
  layers = [layer] * (c.num_layers - c.ffns_removed) + [attention_alone] * c.ffns_removed
  chosen = exponentials if t.exponential == "squares" else (None,) * c.num_layers
  scales = [1.0 if t.fold else sizes.score_scale(c, l) for l in range(c.num_layers)]
  own = [{"exponential": e, "score_scale": scale} for e, scale in zip(chosen, scales, strict=True)]
  return Spec(
    num_heads=c.num_heads,
    d_model=c.d_model,
    ffn_width=sizes.ffn_width(c),
    vocab_size=c.vocab_size,
    context_length=c.context_length if c.temperature == "per_head_position" else c.max_positions,
    norm=c.norm == "layernorm",
    layers=tuple(dataclasses.replace(layer, **fields) for layer, fields in zip(layers, own, strict=True)),
    head_basis=ffn == "none" and c.ffns_removed < c.num_layers,
    head_biases=(),
    transforms=t,
    value_residual=c.value_residual == "fixed",
    epsilon=c.layer_norm_epsilon,
  )


def check(t: Transforms, c) -> None:
  """Raises UserError where transforms contradict the architecture or each other."""
  if t.eliminate_ffns and (c.norm != "none" or c.activation != "identity"):
    raise UserError(
      f"eliminate_ffns: an FFN vanishes only with model.norm=none and model.activation=identity, not "
      f"{c.norm} and {c.activation}: say --transforms=eliminate_ffns=off"
    )
  if t.eliminate_ffns and not t.fold:
    raise UserError("transform eliminate_ffns=on needs fold=on")
  if t.exponential == "squares" and not (t.fold and t.triangle):
    raise UserError("transform exponential=squares needs fold=on and triangle=on")
  if t.softmax_ring == "32" and t.exponential == "engine":
    raise UserError("transform softmax_ring=32 needs exponential=squares")
  for layer, head in _uniform(t.uniform_heads):
    if layer >= c.num_layers or head >= c.num_heads:
      raise UserError(
        f"transform uniform_heads={t.uniform_heads!r}: {layer}.{head} is none of {c.num_layers} layers of "
        f"{c.num_heads} heads, counted from 0"
      )
  if t.activation_ring == "32" and t.exponential == "engine":
    raise UserError("transform activation_ring=32 needs exponential=squares")
  if t.division == "narrow" and t.softmax_ring != "32":
    raise UserError("transform division=narrow needs softmax_ring=32: say division=late")


def parse_transforms(text: str, base: Transforms = Transforms()) -> Transforms:
  """`base` changed as 'name=value,…' says: triangle=off,softmax_ring=64, or stock for all off.

  Raises:
    UserError: for an unknown name or value.
  """
  for part in filter(None, (part.strip() for part in text.split(","))):
    if part == "stock":
      base = STOCK
      continue
    name, _, value = part.partition("=")
    check_choice("transform", name, [*ON_OFF, *CHOICES, "condition_bound", "uniform_heads", "stock"])
    if name in ON_OFF:
      check_choice(f"transform {name}", value, ("on", "off"))
      base = dataclasses.replace(base, **{name: value == "on"})
    elif name in CHOICES:
      check_choice(f"transform {name}", value, CHOICES[name])
      base = dataclasses.replace(base, **{name: value})
    elif name == "uniform_heads":
      _uniform(value)
      base = dataclasses.replace(base, uniform_heads=value)
    else:
      try:
        base = dataclasses.replace(base, condition_bound=float(value))
      except ValueError as error:
        raise UserError(f"transform condition_bound={value!r} is not a number") from error
  return base


def transforms_for(model_config, text: str = "") -> Transforms:
  """All that an architecture allows, changed as `parse_transforms` says.

  Raises:
    UserError: for an unknown name or value.
  """
  linear = model_config.norm == "none" and model_config.activation == "identity"
  return parse_transforms(text, dataclasses.replace(Transforms(), eliminate_ffns=linear))


def _uniform(text: str) -> list[tuple[int, int]]:
  """The (layer, head) that a text LAYER.HEAD+LAYER.HEAD+… names.

  Raises:
    UserError: if it is none.
  """
  if not re.fullmatch(r"(\d+\.\d+(\+\d+\.\d+)*)?", text):
    raise UserError(f"transform uniform_heads={text!r} is not of the form LAYER.HEAD+LAYER.HEAD, such as 0.3+5.11")
  return [tuple(map(int, part.split("."))) for part in text.split("+") if part]


def _layer(fields: dict) -> LayerSpec:
  exponential = fields.pop("exponential")
  fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
  if exponential is not None:
    exponential = Squares(**exponential | {"offsets": tuple(exponential["offsets"])})
  return LayerSpec(**fields, exponential=exponential)
