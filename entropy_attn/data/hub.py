"""Files of a repository on the Hugging Face Hub, or of its local cache when there is no network."""

from collections.abc import Sequence
import pathlib

import huggingface_hub

from entropy_attn.errors import UserError, one_line

_SECONDS_TO_CONNECT = 5


def fetch(repo: str, kind: str, patterns: Sequence[str]) -> pathlib.Path:
  """Downloads the files of a repository that match; those in the local cache are not fetched again.

  Args:
    repo: owner/name.
    kind: "dataset" or "model".
    patterns: of the files, such as "*.parquet".

  Returns:
    The folder of the downloaded snapshot; its name is the commit.

  Raises:
    UserError: when the Hub cannot be reached and the cache lacks a file, or when there is no such repository.
  """
  from huggingface_hub import errors as hub_errors  # not above: its HTTP library would be imported by every run

  try:
    # One quick question first: the download itself retries for half a minute before it gives up.
    huggingface_hub.HfApi().repo_info(repo, repo_type=kind, timeout=_SECONDS_TO_CONNECT)
  except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError) as error:
    raise UserError(f"the Hub has no public {kind} {repo!r}: correct the name, or name a local path") from error
  except Exception as error:  # the HTTP library's own errors, which changed between versions of huggingface_hub
    return _cached(repo, kind, patterns, error)
  try:
    folder = huggingface_hub.snapshot_download(repo, repo_type=kind, allow_patterns=list(patterns))
  except Exception as error:  # as above
    raise UserError(
      f"downloading the {kind} {repo!r} broke off ({_reason(error)}): run the same command again, and it goes on"
    ) from error
  return pathlib.Path(folder)


def _cached(repo: str, kind: str, patterns: Sequence[str], error: Exception) -> pathlib.Path:
  """The snapshot that an earlier run downloaded whole."""
  from huggingface_hub import errors as hub_errors

  try:
    folder = huggingface_hub.snapshot_download(
      repo, repo_type=kind, allow_patterns=list(patterns), local_files_only=True
    )
  except hub_errors.LocalEntryNotFoundError as missing:
    raise UserError(
      f"the Hub cannot be reached ({_reason(error)}) and the {kind} {repo!r} is not in its local cache"
    ) from missing
  return pathlib.Path(folder)


def _reason(error: Exception) -> str:
  return one_line(error, 120) or type(error).__name__
