"""Every file under configs/ with every argument: it loads, validates and is the architecture that its name says."""

import pathlib
import runpy

import pytest

from entropy_attn import config as config_lib
from entropy_attn import fields, published, reparam
from entropy_attn.data import corpora
from entropy_attn.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
ARGUMENTS = {"codeparrot": ("T128", "T256", "L18", "quick"), "languini": ("1.2B", "2.4B", "4.8B")}
TARGETS = tuple(reparam.TARGETS)
ROWS = {
  "ln_gelu": "SM+LN+G",
  "ln_relu": "SM+LN+R",
  "ln": "SM+LN",
  "gelu": "SM+G",
  "relu": "SM+R",
  "sm": "SM",
  "scffn": "SM+ScFFN",
  "scfuffn": "SM+ScFuFFN",
  "scfuffn_t": "SM(t)+ScFuFFN",
  "ereg": "EReg(SM(t)+ScFuFFN)",
}
NORMALISED = {"wnorm": "SM+WNorm", "snorm": "SM+SNorm"}


def _get(name, *argument):
  return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*argument)


def test_each_row_of_the_paper_has_a_file_in_both_families():
  names = {f"{family}_{row}" for family in ARGUMENTS for row in (*ROWS, *NORMALISED)} | {"quickstart", "finetune_gpt2"}
  assert {path.stem for path in CONFIGS.glob("*.py")} == names
  assert set(config_lib.ARCHITECTURES) == {*ROWS, *NORMALISED}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("family", "argument"), [(f, a) for f, names in ARGUMENTS.items() for a in names])
def test_row(family, argument, row):
  c = _get(f"{family}_{row}", argument)
  config_lib.validate(c)
  assert config_lib.architecture_name(c) == ROWS[row]
  assert c.model.context_length == {"T256": 256}.get(argument, 128 if family == "codeparrot" else 512)


@pytest.mark.parametrize("row", NORMALISED)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("family", "argument"), [(f, a) for f, names in ARGUMENTS.items() for a in names])
def test_normalised_row(family, argument, row, targets):
  c = _get(f"{family}_{row}", f"{targets},{argument}")
  config_lib.validate(c)
  assert config_lib.architecture_name(c) == f"{NORMALISED[row]}({targets.upper()})"
  assert config_lib.differences(_get(f"{family}_sm", argument), c) == [
    f"model.reparam: none → {c.model.reparam}",
    *([f"model.reparam_targets: ffn → {targets}"] if targets != "ffn" else []),
    *(["train.on_nonfinite: record → stop"] if family == "codeparrot" else []),
  ]


@pytest.mark.parametrize("family", ARGUMENTS)
def test_without_an_argument_the_first_setting_is_meant(family):
  first = ARGUMENTS[family][0]
  for row in ROWS:
    assert config_lib.differences(_get(f"{family}_{row}"), _get(f"{family}_{row}", first)) == []
  for row in NORMALISED:
    assert config_lib.differences(_get(f"{family}_{row}"), _get(f"{family}_{row}", f"ffn,{first}")) == []
    assert config_lib.differences(_get(f"{family}_{row}", "qk"), _get(f"{family}_{row}", f"qk,{first}")) == []


def test_quickstart_is_the_regularised_row_at_a_laptops_size():
  assert config_lib.differences(_get("quickstart"), _get("codeparrot_ereg", "quick")) == []


@pytest.mark.parametrize("setting", ["gpt2", "quick"])
def test_a_fine_tuned_gpt2_becomes_the_reduced_model(setting):
  c = _get("finetune_gpt2", setting)
  config_lib.validate(c)
  assert config_lib.architecture_name(c) == "EReg(SM(t)+ScFFN)"
  assert c.init.source == c.distill.teacher
  assert (c.model.temperature_init, c.model.alpha_init, c.model.beta_init) == (1, 1, 1)
  with pytest.raises(UserError, match="gpt3"):
    _get("finetune_gpt2", "gpt3")


def test_only_the_published_nan_is_expected_to_be_non_finite():
  record = {p.stem for p in CONFIGS.glob("*.py") if _get(p.stem).train.on_nonfinite == "record"}
  assert record == {"codeparrot_sm"}


def _check(group, **literals):
  """Asserts that a config group has exactly these fields and values."""
  assert group.to_dict() == literals


def test_codeparrot_settings():
  c = _get("codeparrot_ereg")
  _check(
    c.model, num_layers=12, num_heads=12, d_model=768, context_length=128, max_positions=1024, vocab_size=50_000,
    norm="none", activation="identity", gelu="erf", ffn="fused", residual_scaling=True, alpha_init=1.0, beta_init=1.0,
    reparam="none", reparam_targets="ffn", temperature="per_head_position", temperature_init=1e-2,
    temperature_form="direct", bias="qk",
    tie_embeddings=True, scale_embeddings=False, embedding_dropout=0.1, init_std=0.02, ffn_out_init="plain",
    attention_out_init="plain", value_residual="none", ffns_removed=0,
    layer_norm_epsilon=1e-5, ffn_width=0, score_scale="root_width",
    dtype="bfloat16", remat=False, attention="auto",
  )  # fmt: skip
  _check(
    c.regularizer, weight=1e-5, gamma=0.20, reduction="per_query_sum", sides="both", strengths="shared",
    ceiling="log_T", reference_batch=128, threshold_init=0.5, thresholds="learned",
  )  # fmt: skip
  _check(
    c.optimizer, name="adamw", muon_rate=1.0, muon_momentum=0.95,
    schedule="linear", learning_rate=1e-3, final_learning_rate=1e-7, warmup_steps=0, warmup_fraction=0.05,
    b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
  )  # fmt: skip
  assert (c.train.steps, c.train.batch_size, c.train.accumulation, c.train.seed) == (32_300, 512, 4, 0)
  assert (c.eval.every, c.eval.batches, c.eval.last_n, c.eval.max_entropy) == (500, 0, 0, None)
  assert (c.data.name, c.data.packing, c.data.tokenizer) == ("codeparrot", "per_file", "")
  assert (c.data.max_train_files, c.data.max_valid_files) == (600_000, 2_000)


def test_codeparrot_variants_of_the_setting():
  reference = _get("codeparrot_ln_gelu")
  assert config_lib.differences(reference, _get("codeparrot_ln_gelu", "T256")) == [
    "model.context_length: 128 → 256",
    "train.batch_size: 512 → 256",
  ]
  assert config_lib.differences(reference, _get("codeparrot_ln_gelu", "L18")) == ["model.num_layers: 12 → 18"]
  quick = _get("codeparrot_ln_gelu", "quick")
  assert (quick.model.num_layers, quick.model.num_heads, quick.model.d_model) == (6, 4, 128)
  assert (quick.model.context_length, quick.model.vocab_size) == (128, 2048)
  assert (quick.train.steps, quick.train.batch_size, quick.data.name) == (600, 32, "python_source")
  assert config_lib.differences({"optimizer": reference.optimizer}, {"optimizer": quick.optimizer}) == []


def test_languini_settings():
  c = _get("languini_ereg")
  _check(
    c.model, num_layers=12, num_heads=12, d_model=768, context_length=512, max_positions=512, vocab_size=16_384,
    norm="none", activation="identity", gelu="tanh", ffn="fused", residual_scaling=True, alpha_init=1.0, beta_init=1.0,
    reparam="none", reparam_targets="ffn", temperature="per_head_position", temperature_init=1e-1,
    temperature_form="direct", bias="all",
    tie_embeddings=False, scale_embeddings=True, embedding_dropout=0.0, init_std=0.02, ffn_out_init="depth_scaled",
    attention_out_init="plain", value_residual="none", ffns_removed=0,
    layer_norm_epsilon=1e-5, ffn_width=0, score_scale="root_width",
    dtype="bfloat16", remat=False, attention="auto",
  )  # fmt: skip
  _check(
    c.regularizer, weight=5e-5, gamma=0.20, reduction="per_query_sum", sides="both", strengths="shared",
    ceiling="log_T", reference_batch=32, threshold_init=0.5, thresholds="learned",
  )  # fmt: skip
  _check(
    c.optimizer, name="adamw", muon_rate=1.0, muon_momentum=0.95,
    schedule="cosine", learning_rate=6e-4, final_learning_rate=6e-6, warmup_steps=200, warmup_fraction=0.0,
    b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=0.0,
  )  # fmt: skip
  assert (c.data.name, c.data.eval_split, c.eval.batches, c.eval.last_n) == ("languini", "test_iid", 0, 0)
  schedule = {"1.2B": (18_265, 128, 4), "2.4B": (36_529, 128, 4), "4.8B": (36_529, 256, 8)}
  for budget, expected in schedule.items():
    train = _get("languini_ereg", budget).train
    assert (train.steps, train.batch_size, train.accumulation) == expected


@pytest.mark.parametrize(
  ("name", "argument", "nearest"),
  [
    ("codeparrot_ereg", "T127", "T128"),
    ("codeparrot_wnorm", "qk,quik", "quick"),
    ("languini_ereg", "1.3B", "1.2B"),
    ("languini_snorm", "ffn,4.9B", "4.8B"),
  ],
)
def test_unknown_argument(name, argument, nearest):
  with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
    _get(name, argument)


@pytest.mark.parametrize("row", NORMALISED)
def test_unknown_targets(row):
  with pytest.raises(UserError, match=r"model.reparam_targets='qkvo_ffn'.*did you mean 'qkvo\+ffn'"):
    config_lib.validate(_get(f"codeparrot_{row}", "qkvo_ffn"))


ALL = [(path.stem, argument) for path in sorted(CONFIGS.glob("*.py"))
       for argument in ARGUMENTS.get(path.stem.partition("_")[0], (None,))]  # fmt: skip


@pytest.mark.parametrize(("name", "argument"), ALL)
def test_any_config_trains_on_the_embedded_corpus_instead(name, argument):
  setting = f"ffn,{argument}" if name.endswith("norm") else argument
  c = _get(name, *([setting] if argument else []))
  config_lib.validate(c)
  c.data.name = "python_source"
  config_lib.validate(c)


@pytest.mark.parametrize("corpus", corpora.READS)
@pytest.mark.parametrize("field", fields.GROUPS["data"])
def test_a_field_that_the_corpus_does_not_read_is_refused(corpus, field):
  changed = {"path": "x", "tokenizer": "x", "data_dir": "x", "packing": "concat", "include_site_packages": True,
             "max_train_files": 5, "max_valid_files": 5, "valid_fraction": 0.5, "eval_split": "x"}  # fmt: skip
  c = config_lib.base()
  c.data.name = corpus
  if field == "name":
    return config_lib.validate(c)
  c.data[field] = changed.pop(field)
  if field in corpora.READS[corpus]:
    return config_lib.validate(c)
  with pytest.raises(UserError, match=f"data.{field}=.* has no effect with data.name={corpus}: leave it out"):
    config_lib.validate(c)


def test_what_the_corpora_read_is_said_of_each_and_of_fields_that_there_are():
  assert set(corpora.READS) == set(corpora.NAMES)
  assert set().union(*corpora.READS.values()) | {"name"} == set(fields.GROUPS["data"])


def test_a_published_row_is_an_architecture_at_a_setting():
  for row in published.ROWS:
    c = _get(f"{row.family}_{row.architecture}", row.setting)
    assert config_lib.architecture_name(c) == row.model == ROWS[row.architecture]
    assert (c.model.num_layers, c.model.context_length) == (row.layers, row.length)
    for setting in row.perplexities:
      _get(f"{row.family}_{row.architecture}", setting)
  tables = [published.TABLE_2, published.TABLE_5, published.TABLE_6, published.FIGURE_2A_TOP]
  assert {name for table in tables for name in table} <= set(config_lib.ARCHITECTURES)
  (row,) = (row for row in published.ROWS if (row.table, row.architecture) == (3, "ereg"))
  assert row.perplexities == {"T128": published.TABLE_2["ereg"]} and row.gigabytes == 6.43


def test_what_the_docstrings_of_configs_say_was_published_is_what_was_published():
  for row in published.ROWS:
    said = (CONFIGS / f"{row.family}_{row.architecture}.py").read_text().partition('"""')[2].partition('"""')[0]
    for setting, perplexity in row.perplexities.items():
      assert f"{perplexity:.2f} ({setting})" in said, f"{row.name}, {setting}"
