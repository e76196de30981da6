"""Configs whose data is small: a length of 32 and a vocabulary of 300."""

from entropy_attn import config as config_lib


def make_config(data_dir, **fields):
  """The quick config at T=32 and a vocabulary of 300, with dotted fields replaced."""
  config = config_lib.codeparrot("quick")
  config.model.update(context_length=32, vocab_size=300)
  config.train.batch_size = 8
  config.eval.batch_size = 8
  config.data.data_dir = str(data_dir)
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def of_files(tmp_path, folder, **fields):
  """That of a folder of text files, whose dataset is built below another."""
  return make_config(tmp_path / "built", data__name="text_files", data__path=str(folder), **fields)
