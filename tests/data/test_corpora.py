"""The table of the corpora: light to import, and true to what each reads."""

import json
import subprocess
import sys

import numpy as np
import pytest

from entropy_attn import config as config_lib
from entropy_attn.data import corpora, pipeline
from entropy_attn.data import tokenizer as tokenizer_lib
from tests.data.small_configs import make_config


def test_the_names_that_the_config_loads_are_light():
  heavy = ("pyarrow", "huggingface_hub", "tqdm", "tensorflow_datasets", "grain", "tokenizers", "sentencepiece")
  code = f"""
import sys
from entropy_attn import config as config_lib
from entropy_attn import owned
from entropy_attn.data import corpora, packing
print([name for name in {heavy} if name in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout == "[]\n"


def test_each_field_is_read_by_some_corpus_and_the_defaults_agree():
  data = config_lib.base().data
  assert set().union(*corpora.READS.values()) == set(data)
  assert data.valid_fraction == corpora.VALID_FRACTION
  assert set(pipeline._CORPORA) | {corpora.IN_PLACE} == set(corpora.NAMES)


@pytest.mark.parametrize("name", corpora.NAMES)
def test_a_corpus_reads_the_fields_that_the_table_says(tmp_path, folder, texts, name, monkeypatch):
  if name == "languini":
    (folder / "books_300").mkdir()
    for split in ("train", "test_iid"):
      np.save(folder / f"file_list_{split}.npy", np.array([(f"b{i}", "50") for i in range(8)]))
  limits = {"data__max_train_files": 20, "data__max_valid_files": 4}
  config = make_config(tmp_path / "built", data__name=name, data__path=str(folder), **limits)
  if name == "codeparrot":
    (folder / "rows.json").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    tokenizer_lib.train(texts, 300, tmp_path / "t.json")
    config.data.tokenizer = str(tmp_path / "t.json")
  read = set()

  class Watched:
    def __getattr__(self, field):
      read.add(field)
      return config.data[field]

  class Config:
    data = Watched()
    model, train, eval = config.model, config.train, config.eval

  pipeline.prepare(Config())
  assert read - {"name"} <= corpora.READS[name]
  assert corpora.READS[name] - read <= {"data_dir", "name"}
