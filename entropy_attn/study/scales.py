"""The paper's rows at each scale, for the files under configs/studies/."""

from collections.abc import Mapping, Sequence

from entropy_attn import published
from entropy_attn.errors import check_choice
from entropy_attn.study.runs import SCALES, Run

SEEDS = (0, 1, 2)  # where a claim rests on a row

# small: the quick setting (L=6, H=4, d=128, 600 steps of 4,096 tokens), and what of a setting it keeps.
_SMALL = {
  "T128": {},
  "T256": {
    "model.context_length": 256, "model.max_positions": 256, "train.batch_size": 16, "eval.batch_size": 16,
  },
  "L18": {"model.num_layers": 9},
}  # fmt: skip
# The same of Languini's settings: its optimizer, its T=512, its three budgets in the ratio 1 : 2 : 4.
_SMALL_LANGUINI = {
  "model.num_layers": 6, "model.num_heads": 4, "model.d_model": 128, "model.vocab_size": 2048,
  "model.dtype": "float32", "optimizer.warmup_steps": 20, "train.accumulation": 1, "train.log_every": 10,
  "train.checkpoint_every": 200, "eval.every": 0, "eval.batch_size": 8, "data.name": "python_source",
}  # fmt: skip
_BUDGETS = {
  "1.2B": {"train.steps": 200, "train.batch_size": 8},
  "2.4B": {"train.steps": 400, "train.batch_size": 8},
  "4.8B": {"train.steps": 400, "train.batch_size": 16},
}
# smoke: whether it runs at all, and nothing of what it comes to.
_SMOKE = {
  "model.num_layers": 2, "model.num_heads": 2, "model.d_model": 16, "model.context_length": 32,
  "model.max_positions": 64, "model.vocab_size": 512, "model.dtype": "float32", "train.steps": 6,
  "train.batch_size": 4, "train.accumulation": 1, "train.log_every": 1, "train.checkpoint_every": 6, "eval.every": 3,
  "eval.batches": 2, "eval.batch_size": 4, "data.name": "python_source", "data.max_train_files": 60,
  "data.max_valid_files": 10,
}  # fmt: skip
_SMOKE_OF = {
  "T256": {"model.context_length": 64},
  "L18": {"model.num_layers": 3},
  **{budget: {"train.steps": steps, "optimizer.warmup_steps": 2} for budget, steps in zip(_BUDGETS, (4, 6, 8))},  # noqa: B905
}


def row(
  architecture: str,
  scale: str,
  *,
  name: str | None = None,
  family: str = "codeparrot",
  setting: str = "T128",
  targets: str = "ffn",
  overrides: Mapping[str, object] | None = None,
  small: Mapping[str, object] | None = None,
  seeds: Sequence[int] = SEEDS,
) -> Run:
  """A row of the paper at a scale, beside what was printed of it where `overrides` is empty.

  Every run may diverge (train.on_nonfinite=record): that is a finding, and no failure of the study.

  Args:
    architecture: one of `config.ARCHITECTURES`.
    name: of the run; None: the architecture's.
    family, setting: of `config`, codeparrot or languini.
    targets: of wnorm and snorm, what is normalised.
    overrides: at every scale: what makes the row another than the paper's.
    small: at the scale small alone: what it takes to stay within an hour.
    seeds: at the scale small; the others have seed 0 alone.
  """
  check_choice("scale", scale, SCALES)
  argument, changes = setting, {}
  if scale != "paper":
    argument = setting if family == "languini" else "quick"
    changes = _SMALL_LANGUINI | _BUDGETS[setting] if family == "languini" else _SMALL[setting]
    changes = changes | (_SMOKE | _SMOKE_OF.get(setting, {}) if scale == "smoke" else small or {})
  if architecture in published.TABLE_5:
    argument = f"{targets},{argument}"
  overrides = dict(overrides or {})
  gamma = overrides.get("regularizer.gamma", 0.2)
  is_published = set(overrides) <= {"regularizer.gamma"}
  return Run(
    name or architecture,
    f"{family}_{architecture}:{argument}",
    {**changes, "train.on_nonfinite": "record", **overrides},
    seeds if scale == "small" else (0,),
    published.find(family, setting, architecture, targets, gamma) if is_published else None,
  )
