import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from entropy_attn import config, counts, reparam
from entropy_attn.errors import UserError
from entropy_attn.model import ACTIVATIONS, GPT, Linear

ROWS = config.ARCHITECTURES
VARIANTS = {
  "SM+LN+G": ROWS["ln_gelu"],
  "SM+LN+R": ROWS["ln_relu"],
  "SM+LN": ROWS["ln"],
  "SM+G": ROWS["gelu"] | {"gelu": "tanh"},
  "SM": ROWS["sm"],
  "SM+ScFFN": ROWS["scffn"],
  "SM+ScFuFFN": ROWS["scfuffn"],
  "SM(t)+ScFuFFN": ROWS["scfuffn_t"] | {"temperature_init": 0.3},
  "SM(t)+LN+G": {"temperature": "per_head", "temperature_init": 2.0},
  "SM+LN+G+VRes": {"value_residual": "fixed"},
  "SM+VRes+ScFuFFN(−1)": ROWS["scfuffn"] | {"value_residual": "fixed", "ffns_removed": 1, "alpha_init": 10.0},
  "SM+LN+R+FFN(−2)": ROWS["ln_relu"] | {"ffns_removed": 2},
}
T = 8


def tiny(family=config.codeparrot, **fields):
  c = family()
  c.model.update(num_layers=2, num_heads=2, d_model=8, context_length=T, max_positions=12, vocab_size=32)
  c.model.update(dtype="float32", init_std=0.5)
  c.model.update(fields)
  config.validate(c)
  return c


def perturbed(variables, seed=7):
  """Every parameter moved off its initial value, so that no bias is zero and no gain one."""
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return tree.unflatten([x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def tokens(batch=2, length=T):
  return jax.random.randint(jax.random.key(1), (batch, length), 0, 32)


def init(c):
  return jax.jit(GPT(c).init)(jax.random.key(0), tokens())


def shapes(c):
  """Of the parameters, without any."""
  return jax.eval_shape(GPT(c).init, jax.random.key(0), tokens())["params"]


def apply(c, variables, x=None):
  return jax.jit(GPT(c).apply)(variables, tokens() if x is None else x)


@pytest.mark.parametrize("family", [config.codeparrot, config.languini])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_entropies_equal_an_independent_implementation(family, name):
  c = tiny(family, **VARIANTS[name])
  assert config.architecture_name(c) == name
  variables = perturbed(init(c))
  logits, out = apply(c, variables)
  expected_logits, expected_entropy = oracles.gpt(variables["params"], c.model, np.asarray(tokens()))
  np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(out["entropy"], expected_entropy, atol=1e-4)


@pytest.mark.parametrize("name", ["SM+LN+G", "SM(t)+ScFuFFN"])
def test_a_logit_does_not_depend_on_later_tokens(name):
  c = tiny(**VARIANTS[name])
  params = init(c)["params"]
  x = jax.random.normal(jax.random.key(2), (T, 8))

  def logits(x_TxD):
    """The model with its token embeddings as the input, by a vocabulary of one row a position."""
    untied = tiny(**VARIANTS[name], tie_embeddings=False, vocab_size=T)
    head = jax.random.normal(jax.random.key(3), (8, T))
    variables = {"params": {**params, "token_embedding": x_TxD, "head": head}}
    return GPT(untied).apply(variables, jnp.arange(T)[None])[0][0, :, 0]

  jacobian_TxT = jnp.abs(jax.jacobian(logits)(x)).sum(axis=-1)
  np.testing.assert_array_equal(jnp.triu(jacobian_TxT, 1), 0)
  assert np.all(jnp.diag(jacobian_TxT) > 0)


@pytest.mark.parametrize("family", [config.codeparrot, config.languini])
@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_as_many_as_counted_from_the_config(family, name):
  c = tiny(family, **VARIANTS[name])
  assert sum(x.size for x in jax.tree.leaves(shapes(c))) == counts.parameter_count(c.model)


@pytest.mark.parametrize("kind", ["weight", "spectral", "sigma"])
@pytest.mark.parametrize(
  "targets", [pytest.param(t, marks=[pytest.mark.slow] * (t != "qk+ffn")) for t in reparam.TARGETS]
)
def test_folded_normalisation_gives_the_same_logits(kind, targets):
  ffn = "fused" if targets == "qkvo+ffn" else "mlp"
  removed = int(targets == "qk+ffn")  # a stack without FFNs too
  fields = {"norm": "none", "activation": "identity", "ffn": ffn, "bias": "all", "ffns_removed": removed}
  c = tiny(**fields, reparam=kind, reparam_targets=targets)
  variables = perturbed(init(c))
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == counts.parameter_count(c.model)
  logits, _ = apply(c, variables)
  folded, plain = reparam.fold(variables, c.model)
  assert plain.reparam == "none"
  assert jax.tree.structure(folded["params"]) == jax.tree.structure(shapes(plain))
  tolerance = 1e-5 if kind == "sigma" else 1e-3  # one scalar a kernel rounds the least
  np.testing.assert_allclose(apply(plain, folded)[0], logits, rtol=tolerance, atol=tolerance)
  unnormalised, _ = apply(plain, {"params": strip(variables)})
  assert np.abs(unnormalised - logits).max() > 0.05  # the normalisation does something


def strip(variables):
  """The parameters without gains: what a wrong fold would take."""
  without_gains = lambda tree: {k: without_gains(v) for k, v in tree.items() if k != "gain"} if _is(tree) else tree
  return without_gains(variables["params"])


def _is(tree):
  return isinstance(tree, dict)


FORMULAS = {
  ("gelu", "erf"): lambda x: x * (1 + jax.lax.erf(x / 2**0.5)) / 2,
  ("gelu", "tanh"): lambda x: x * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
  ("relu", "erf"): lambda x: jnp.where(x > 0, x, 0),
  ("identity", "erf"): lambda x: x,
}


@pytest.mark.parametrize("activation,gelu", FORMULAS)
def test_a_recomputed_activation_has_the_derivatives_of_its_formula_in_both_modes(activation, gelu):
  c = tiny(activation=activation, gelu=gelu).model
  rng = np.random.default_rng(0)
  x, kernel, tangent = 2 * rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 4)), rng.normal(size=(2, 3, 5))
  ours = lambda x, kernel: Linear(c, 4).apply({"params": {"kernel": kernel}}, x, ACTIVATIONS[activation](c))
  formula = lambda x, kernel: FORMULAS[activation, gelu](x) @ kernel

  def derivatives(fn, x, kernel, tangent):
    of_x = lambda x: jnp.sum(jnp.sin(fn(x, kernel)))
    along = lambda f: jax.jvp(f, (x,), (tangent,))[1]
    first = jax.grad(lambda *operands: jnp.sum(jnp.sin(fn(*operands))), argnums=(0, 1))
    return *first(x, kernel), along(of_x), along(jax.grad(of_x))

  found = jax.jit(lambda *operands: derivatives(ours, *operands))(*map(jnp.float32, (x, kernel, tangent)))
  with jax.enable_x64():
    expected = derivatives(formula, *map(jnp.asarray, (x, kernel, tangent)))
  for gradient, true in zip(found, expected, strict=True):
    np.testing.assert_allclose(gradient, true, rtol=1e-4, atol=1e-4 * np.max(np.abs(true)))


def test_weight_normalisation_starts_as_the_identity_and_separates_length_from_direction():
  c = tiny(reparam="weight", reparam_targets="qkvo+ffn")
  variables = init(c)
  plain = tiny()
  np.testing.assert_allclose(apply(c, variables)[0], apply(plain, {"params": strip(variables)})[0], atol=1e-5)
  kernel = jax.random.normal(jax.random.key(0), (3, 5, 4))
  gain = jnp.arange(1.0, 13).reshape(3, 4)
  np.testing.assert_allclose(reparam.column_norms(reparam.weight_normalise(kernel, gain)), gain, rtol=1e-6)
  np.testing.assert_allclose(
    reparam.weight_normalise(9 * kernel, gain), reparam.weight_normalise(kernel, gain), rtol=1e-5
  )


def test_sigma_reparametrisation_starts_with_spectral_norms_of_one_and_learns_one_scalar_a_linear():
  c = tiny(reparam="sigma", reparam_targets="qkvo+ffn")
  variables = init(c)
  gains = {name: linear["gain"] for name, linear in variables["params"]["blocks"].items() if "gain" in linear}
  assert set(gains) == {"q", "k", "v", "o", "up", "down"}
  assert all(gain.shape == (2,) and np.all(gain == 1) for gain in gains.values())
  folded, _ = reparam.fold(variables, c.model)
  for linear in gains:
    largest = jnp.linalg.svd(folded["params"]["blocks"][linear]["kernel"], compute_uv=False)[:, 0]
    np.testing.assert_allclose(largest, 1, rtol=0.05)  # after 15 power iterations
  other = jax.tree.map(lambda x: x, variables)
  other["params"]["blocks"]["v"]["kernel"] = (
    9 * other["params"]["blocks"]["v"]["kernel"]
  )  # its size is the gain's alone
  np.testing.assert_allclose(apply(c, other)[0], apply(c, variables)[0], rtol=1e-4, atol=1e-4)


def test_power_iteration_finds_the_largest_singular_value():
  kernel = jax.random.normal(jax.random.key(0), (3, 12, 7))
  u = reparam.power_iteration(kernel, jax.random.normal(jax.random.key(1), (3, 7)), steps=200)
  largest = jnp.linalg.svd(reparam.spectral_normalise(kernel, u), compute_uv=False)[:, 0]
  np.testing.assert_allclose(largest, 1, rtol=1e-4)


def test_power_iteration_state_moves_only_where_it_is_mutable():
  c = tiny(reparam="spectral", reparam_targets="qk+ffn")
  variables = perturbed(init(c))
  _, updated = GPT(c).apply(variables, tokens(), mutable=["spectral"])
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), updated["spectral"], variables["spectral"])
  assert all(jax.tree.leaves(moved))
  assert set(updated["spectral"]["blocks"]) == {"q", "k", "up", "down"}


def test_fused_ffn_equals_the_product_of_the_two_linears():
  c = tiny(norm="none", activation="identity", residual_scaling=True)
  variables = init(c)
  blocks = dict(variables["params"]["blocks"])
  up, down = blocks.pop("up")["kernel"], blocks.pop("down")["kernel"]
  fused = {"params": {**variables["params"], "blocks": blocks | {"fused": {"kernel": up @ down}}}}
  ours = apply(tiny(**VARIANTS["SM+ScFuFFN"]), fused)[0]
  np.testing.assert_allclose(ours, apply(c, variables)[0], rtol=1e-3, atol=1e-3)


def test_removed_ffns_have_no_parameters_and_a_model_of_them_alone_is_its_attention():
  c = tiny(**VARIANTS["SM+ScFuFFN"], ffns_removed=1)
  params = shapes(c)
  assert set(params["blocks"]) - set(params["blocks_without_ffn"]) == {"fused", "alpha", "beta"}
  assert {x.shape[0] for stack in ("blocks", "blocks_without_ffn") for x in jax.tree.leaves(params[stack])} == {1}
  without = tiny(**VARIANTS["SM+ScFuFFN"], ffns_removed=2)
  variables = perturbed(init(without))
  assert "blocks" not in variables["params"]
  blocks = variables["params"]["blocks_without_ffn"]
  silent = blocks | {"fused": {"kernel": jnp.zeros((2, 8, 8))}, "alpha": jnp.ones(2), "beta": jnp.ones(2)}
  rest = {name: value for name, value in variables["params"].items() if name != "blocks_without_ffn"}
  whole = apply(tiny(**VARIANTS["SM+ScFuFFN"]), {"params": rest | {"blocks": silent}})
  logits, out = apply(without, variables)
  np.testing.assert_allclose(logits, whole[0], atol=1e-5)
  np.testing.assert_allclose(out["entropy"], whole[1]["entropy"], atol=1e-5)


@pytest.mark.parametrize("name", ["o", "fused"])
def test_depth_scaled_init_divides_by_the_root_of_twice_the_depth(name):
  field = {"o": "attention_out_init", "fused": "ffn_out_init"}[name]
  spread = lambda form: init(tiny(**VARIANTS["SM+ScFuFFN"], **{field: form}))["params"]["blocks"][name]["kernel"]
  np.testing.assert_allclose(spread("depth_scaled") * 2, spread("plain"), rtol=1e-5)  # 2 layers


def test_remat_and_bfloat16_change_memory_and_precision_alone():
  c = tiny()
  variables = init(c)
  grad = lambda c: jax.grad(lambda p: apply(c, {"params": p})[0].var())(variables["params"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grad(tiny(remat=True)), grad(c))
  residual = {"value_residual": "fixed", "ffns_removed": 1}
  variables = init(tiny(**residual))
  grads = [grad(tiny(**residual, remat=remat)) for remat in (True, False)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)
  variables = init(c)
  half, out = apply(tiny(dtype="bfloat16"), variables)
  assert half.dtype == jnp.float32
  assert out["entropy"].dtype == jnp.float32
  np.testing.assert_allclose(half, apply(c, variables)[0], atol=0.5)


def test_a_learned_logarithm_of_the_temperature_is_the_same_model_with_t_above_zero():
  direct = tiny(**VARIANTS["SM(t)+ScFuFFN"])
  log = tiny(**VARIANTS["SM(t)+ScFuFFN"], temperature_form="log")
  variables = perturbed(init(log))
  t = variables["params"]["blocks"]["temperature"]
  blocks = variables["params"]["blocks"] | {"temperature": jnp.exp(t)}
  np.testing.assert_allclose(
    apply(log, variables)[0], apply(direct, {"params": variables["params"] | {"blocks": blocks}})[0], atol=1e-4
  )
  assert np.all(t < 0)  # the logarithm itself may be negative


def test_dropout_acts_in_training_alone():
  c = tiny(embedding_dropout=0.5)
  variables = init(c)
  calm = apply(c, variables)[0]
  np.testing.assert_array_equal(calm, apply(tiny(embedding_dropout=0.0), variables)[0])
  dropped = GPT(c).apply(variables, tokens(), train=True, rngs={"dropout": jax.random.key(3)})[0]
  assert np.abs(dropped - calm).max() > 0.01


def test_nonfinite_tokens_name_the_first_bad_layer():
  c = tiny()
  variables = init(c)
  kernel = variables["params"]["blocks"]["down"]["kernel"]
  variables["params"]["blocks"]["down"]["kernel"] = kernel.at[1, 0, 0].set(jnp.nan)
  _, out = apply(c, variables)
  np.testing.assert_array_equal(out["nonfinite_tokens"], [0, 2 * T])
  assert np.all(np.isfinite(out["entropy"]))


def test_too_many_tokens_raise():
  c = tiny()
  with pytest.raises(ValueError, match="13 tokens exceed the 12 positions"):
    GPT(c).apply(init(c), tokens(length=13))
  longer = GPT(c).apply(init(c), tokens(length=12))[0]  # more than context_length, within the table
  assert longer.shape == (2, 12, 32)


def test_config_may_be_whole_or_its_model_group():
  c = tiny()
  assert GPT(c) == GPT(c.model)
  assert dataclasses.is_dataclass(GPT(c))


FIELDS_OF_OTHERS = [
  {"layer_norm_epsilon": 1e-2, "ffn_width": 20},
  {"score_scale": "none"},
  {"score_scale": "layer", "ffns_removed": 1},
  {"score_scale": "root_width_and_layer", "temperature": "per_head", "temperature_init": 2.0, "ffn_width": 3},
]


@pytest.mark.parametrize("fields", FIELDS_OF_OTHERS, ids=str)
def test_what_other_gpt_2_files_say_equals_an_independent_implementation(fields):
  c = tiny(**fields)
  variables = perturbed(init(c))
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == counts.parameter_count(c.model)
  logits, out = apply(c, variables)
  expected_logits, expected_entropy = oracles.gpt(variables["params"], c.model, np.asarray(tokens()))
  np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(out["entropy"], expected_entropy, atol=1e-4)
  plain = fields | {name: config.base().model[name] for name in ("layer_norm_epsilon", "score_scale")}
  assert np.abs(apply(tiny(**plain), variables)[0] - logits).max() > 1e-3


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("name", ["SM+LN+G", "SM+LN+G+VRes"])
def test_padding_at_either_end_changes_nothing_of_the_text(implementation, name):
  c = tiny(**VARIANTS[name], attention=implementation)
  variables = perturbed(init(c))
  text = tokens(batch=1, length=5)
  logits, out = apply(c, variables, text)
  for before in (0, 3, 2):
    padded = jnp.pad(text, ((0, 0), (before, 3 - before)), constant_values=9)
    real = (jnp.arange(T) >= before) & (jnp.arange(T) < before + 5)
    positions = jnp.where(real, jnp.arange(T) - before, 1)[None]
    found, found_out = jax.jit(GPT(c).apply)(variables, padded, positions_BxT=positions, mask_BxT=real[None])
    np.testing.assert_allclose(found[:, real], logits, atol=1e-5)
    np.testing.assert_allclose(found_out["entropy"][:, :, real], out["entropy"], atol=1e-5)
    np.testing.assert_array_equal(found_out["entropy"][:, :, ~real], 0)
    assert np.all(np.isfinite(found))


@pytest.mark.slow
def test_the_loss_and_its_gradient_are_those_of_the_text_without_its_padding():
  c = tiny()
  variables = perturbed(init(c))
  text, targets = tokens(batch=2, length=6), tokens(batch=2, length=6)[:, ::-1]

  def loss(params, left):
    pad = lambda x: jnp.pad(x, ((0, 0), (left, 0)), constant_values=3)
    positions = jnp.maximum(jnp.arange(6 + left) - left, 0)[None]
    mask = jnp.broadcast_to(jnp.arange(6 + left) >= left, (2, 6 + left))
    weights = mask.astype(jnp.float32)
    options = {"positions_BxT": positions, "mask_BxT": mask} if left else {}
    total, out = GPT(c).apply({"params": params}, pad(text), pad(targets), weights, method="cross_entropy", **options)
    return total + out["entropy"].sum()

  grads = [jax.grad(loss)(variables["params"], left) for left in (0, 2)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *grads)


def test_positions_that_are_not_there_are_not_numbers_and_a_temperature_of_each_takes_none():
  c = tiny()
  variables = init(c)
  logits, _ = GPT(c).apply(variables, tokens(), positions_BxT=jnp.full((1, T), 12))
  assert np.all(np.isnan(logits))
  c = tiny(**VARIANTS["SM(t)+ScFuFFN"])
  with pytest.raises(ValueError, match="positions 0 to T − 1 alone"):
    GPT(c).apply(init(c), tokens(), positions_BxT=jnp.zeros((1, T), jnp.int32))


def test_a_fused_ffn_has_no_hidden_width():
  with pytest.raises(UserError, match="model.ffn_width=9 has no effect with model.ffn=fused"):
    tiny(**ROWS["scfuffn"], ffn_width=9)
