"""Small corpora of real text, and one dataset of the interpreter's own sources."""

import keyword
import pathlib
import pydoc
import sysconfig

import pytest

from entropy_attn.data import pipeline
from tests.data.small_configs import make_config


def python_texts(count: int) -> list[str]:
  """The texts of the `count` first modules of the standard library that have something to say."""
  folder = pathlib.Path(sysconfig.get_path("stdlib"))
  texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
  return [text for text, _ in zip((t for t in texts if len(t) > 2_000), range(count), strict=False)]


@pytest.fixture(scope="session")
def texts():
  return [*python_texts(24), pydoc.__doc__, "\n".join(keyword.kwlist)]


@pytest.fixture
def folder(tmp_path, texts):
  """A folder of text files, some of them below another folder."""
  root = tmp_path / "text"
  (root / "more").mkdir(parents=True)
  for i, text in enumerate(texts):
    (root / ("more" if i % 3 else ".") / f"{i:02}.txt").write_text(text, encoding="utf-8")
  return root


@pytest.fixture
def small(tmp_path):
  """A folder of eight short files: what is built of it is built at once."""
  root = tmp_path / "small"
  root.mkdir()
  for i, text in enumerate(python_texts(8)):
    (root / f"{i}.txt").write_text(text[:3000], encoding="utf-8")
  return root


@pytest.fixture(scope="session")
def python_config(tmp_path_factory):
  sizes = {"model__context_length": 128, "model__vocab_size": 1024, "train__batch_size": 12, "eval__batch_size": 64}
  return make_config(tmp_path_factory.mktemp("python_source"), **sizes)


@pytest.fixture(scope="session")
def python_dataset(python_config):
  return pipeline.prepare(python_config)
