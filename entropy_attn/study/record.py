"""study.json, what the work folder of a study is of: its name, its scale, and the config of each run."""

from collections.abc import Mapping
import pathlib

from ml_collections import ConfigDict

from entropy_attn import files
from entropy_attn.errors import UserError
from entropy_attn.run import folder, metrics, summary
from entropy_attn.study.runs import Job, Study

_NAME = "study.json"


def check(workdir: pathlib.Path, study: Study, configs: Mapping[Job, ConfigDict]) -> dict[str, str]:
  """Checks that a work folder is that of a study, and its runs are those of the study.

  Returns:
    For each job whose folder is damaged, its name and what is wrong.

  Raises:
    UserError: where the folder is of another study or scale, or a run in it has another config: it names the fields.
  """
  try:
    saved = files.read_json(workdir / _NAME)
  except (OSError, ValueError) as error:
    raise UserError(f"{workdir / _NAME} is damaged ({error}): delete it, and the same command goes on") from error
  if saved is not None:
    before, now = f"{saved.get('study')}:{saved.get('scale')}", f"{study.name}:{study.scale}"
    if before != now:
      raise UserError(f"--workdir={workdir} is the folder of the study {before}, not of {now}: choose another")
  damaged = {}
  for job, config in configs.items():
    path = workdir / job.name
    try:
      folder.check_same_run(path, config)
      reason = _damage(path)
    except folder.Damaged as error:
      reason = str(error)
    if reason:
      damaged[job.name] = f"{reason}: delete {path}, and the same command trains it again"
  return damaged


def _damage(path: pathlib.Path) -> str | None:
  """What is wrong with the records of a run that has an outcome; its figures are drawn from them."""
  if not summary.read(path):
    return None
  try:
    return None if metrics.last_step(path) is not None else f"{path} has an outcome, and no record of how it came to it"
  except UserError as error:
    return str(error)


def write(workdir: pathlib.Path, study: Study, configs: Mapping[Job, ConfigDict]) -> None:
  """Records what the folder is of."""
  files.write_json(workdir / _NAME, content(study, configs))


def content(study: Study, configs: Mapping[Job, ConfigDict]) -> dict:
  """What study.json holds: a run's config is that of its first seed."""
  runs = {}
  for job, config in configs.items():
    runs.setdefault(job.run.name, {"seeds": list(job.run.seeds), "config": config.to_dict()})
  return {"study": study.name, "scale": study.scale, "runs": runs}
