"""What a study trains: runs with their seeds, from a study file, and the config and the command of each."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import pathlib
import re
import sys

from ml_collections import ConfigDict

from entropy_attn import config as config_lib
from entropy_attn import config_file, fields
from entropy_attn.errors import UserError, check_choice

SCALES = ("smoke", "small", "paper")
_FOLDER = re.compile(r"\{folder:([^{}]*)\}")  # in an override: the folder of another run
_SEED = "train.seed"


@dataclasses.dataclass(frozen=True)
class Run:
  """One row of a study: a model, trained once for each seed.

  Attributes:
    name: of the row and its folder.
    config: NAME or FILE, or either with :ARGUMENT, as --config takes it.
    overrides: values by "group.field". '{folder:NAME}' in a text stands for the folder of that run (of the same seed,
      where it has it, else of its first), which is then trained before.
    seeds: values of train.seed.
    published: what the paper printed of it (`published.find`), or None.
  """

  name: str
  config: str
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
  seeds: Sequence[int] = (0,)
  published: Mapping | None = None


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs, and what they yield.

  Attributes:
    runs: rows of the table, in its order.
    figures: names of `report.paper`'s.
    baseline: the name of the run that changes are counted against.
    pairs: (a, b), names of runs that a paired test over their seeds compares.
    name, scale: of the file that defined it; `load_study` sets them.
  """

  runs: Sequence[Run]
  figures: Sequence[str] = ()
  baseline: str | None = None
  pairs: Sequence[tuple[str, str]] = ()
  name: str = ""
  scale: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """One training: a run with one of its seeds."""

  run: Run
  seed: int
  after: tuple["Job", ...] = ()  # whose folders its overrides name

  @property
  def name(self) -> str:
    """'ereg/seed0', its folder below that of the study."""
    return f"{self.run.name}/seed{self.seed}"


def load_study(spec: str) -> Study:
  """The study of NAME or FILE, or of either with :SCALE.

  Raises:
    UserError: for a missing file or function, an unknown scale, no runs, names that are not distinct and fit for
      folders, or figures' and pairs' names that are not those of runs.
  """
  file, _, scale = spec.partition(":")
  path, scale = config_file.find(file, "--study", config_file.STUDIES), scale or "small"
  check_choice(f"--study={file}: the scale", scale, SCALES)
  study = config_file.call(path, "get_study", scale)
  if not isinstance(study, Study) or not all(isinstance(run, Run) for run in study.runs):
    raise UserError(f"{path}: get_study() must return a Study of Runs, from entropy_attn.study")
  _check(study, path)
  return dataclasses.replace(study, name=path.stem, scale=scale)


def with_seeds(study: Study, count: int) -> Study:
  """The study with so many seeds a run: its own first, then the smallest others."""
  more = lambda run: itertools.chain(run.seeds, (seed for seed in itertools.count() if seed not in run.seeds))
  runs = [dataclasses.replace(run, seeds=tuple(itertools.islice(more(run), count))) for run in study.runs]
  return dataclasses.replace(study, runs=tuple(runs))


def with_overrides(study: Study, texts: Iterable[str]) -> Study:
  """The study with fields of all its runs overridden, each as 'group.field=value'.

  Raises:
    UserError: for another form, an unknown field, or a value that it does not accept.
  """
  overrides = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if not equals:
      raise UserError(f"--override={text} has not the form group.field=value, such as train.steps=1200")
    overrides[name] = fields.find(name).parse(name, value)
  if _SEED in overrides:
    raise UserError(f"--override={_SEED}=… would train one seed under the names of all: use --seeds=N")
  runs = [dataclasses.replace(run, overrides={**run.overrides, **overrides}) for run in study.runs]
  return dataclasses.replace(study, runs=tuple(runs))


def jobs(study: Study) -> list[Job]:
  """What is to be trained, in order: all runs with their first seed, then with the next; who names another, after it.

  Raises:
    UserError: for a '{folder:…}' that names no other run, or runs that wait for each other.
  """
  found: dict[tuple[str, int], Job] = {}
  by_name = {run.name: run for run in study.runs}

  def add(run: Run, seed: int, waiting: tuple[str, ...]) -> Job:
    if (run.name, seed) in found:
      return found[run.name, seed]
    if run.name in waiting:
      raise UserError(f"run {run.name!r} waits for itself: {' → '.join([*waiting, run.name])}")
    after = []
    for name in dict.fromkeys(_named_folders(run)):
      check_choice(f"run {run.name!r}: the run of {{folder:…}}", name, by_name)
      other = by_name[name]
      after.append(add(other, seed if seed in other.seeds else other.seeds[0], (*waiting, run.name)))
    return found.setdefault((run.name, seed), Job(run, seed, tuple(after)))

  for index in range(max(len(run.seeds) for run in study.runs)):
    for run in study.runs:
      if index < len(run.seeds):
        add(run, run.seeds[index], ())
  return list(found.values())


def load_config(job: Job, workdir: pathlib.Path) -> ConfigDict:
  """The validated config of a job: what its training command will see.

  Raises:
    UserError: for a missing file, an unknown field or a value that does not fit.
  """
  try:
    config = config_file.load(job.run.config, _overrides(job, workdir))
    config_lib.validate(config)
  except UserError as error:
    raise UserError(f"run {job.run.name!r}: {error}") from error
  return config


def command(job: Job, workdir: pathlib.Path) -> list[str]:
  """The command line that trains a job, or goes on with it; the study's report shows it, so it writes none."""
  overrides = [f"--config.{name}={fields.find(name).shown(v)}" for name, v in _overrides(job, workdir).items()]
  main = [sys.executable, "-m", "entropy_attn.main"]
  return [*main, f"--config={job.run.config}", f"--workdir={workdir / job.name}", *overrides, "--noreport"]


def chosen(all_jobs: Sequence[Job], only: Iterable[str]) -> list[Job]:
  """The jobs of the runs named in `only` and those that they come after, or all.

  Raises:
    UserError: for a name that is none of theirs.
  """
  only, names = list(only), list(dict.fromkeys(job.run.name for job in all_jobs))
  for name in only:
    check_choice("--only", name, names)
  named = [job for job in all_jobs if not only or job.run.name in only]
  needed = set()
  while named:
    job = named.pop()
    needed.add(job.name)
    named += job.after
  return [job for job in all_jobs if job.name in needed]


def _overrides(job: Job, workdir: pathlib.Path) -> dict[str, object]:
  """A job's overrides, its seed among them, with the folders of other runs in place."""
  folders = {other.run.name: str(workdir / other.name) for other in job.after}
  filled = lambda v: _FOLDER.sub(lambda found: folders[found[1]], v) if isinstance(v, str) else v
  return {**{name: filled(value) for name, value in job.run.overrides.items()}, _SEED: job.seed}


def _named_folders(run: Run) -> list[str]:
  return [name for value in run.overrides.values() if isinstance(value, str) for name in _FOLDER.findall(value)]


def _check(study: Study, path: pathlib.Path) -> None:
  names = [run.name for run in study.runs]
  if not names:
    raise UserError(f"{path}: get_study() returns no runs")
  for run in study.runs:
    if not re.fullmatch(r"\w[\w.+-]*", str(run.name)):
      raise UserError(f"{path}: the run name {run.name!r} is not fit for a folder: use letters, digits and _ . + -")
    if names.count(run.name) > 1:
      raise UserError(f"{path}: two runs are named {run.name!r}")
    seeds = list(run.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int for seed in seeds):
      raise UserError(f"{path}: run {run.name!r}: seeds={run.seeds!r} must be different integers, one or more")
    if _SEED in run.overrides:
      raise UserError(f"{path}: run {run.name!r} overrides {_SEED}: give its seeds=(…) in its place")
  for what, name in [("baseline", study.baseline), *(("pairs", name) for pair in study.pairs for name in pair)]:
    if name is not None:
      check_choice(f"{path}: {what}", name, names)
