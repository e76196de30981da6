"""Models in the files of others: Hugging Face GPT-2 in and out, and our own in a folder of that form.

  keys        which of our parameters each of their tensors holds
  settings    which of our fields each of their settings is, and what is refused by name
  tensors     safetensors files, read and written
  read        a folder → config and variables
  fold        a model → the GPT-2 that computes the same, where there is one
  card        the README.md of an exported folder
  write       config and variables → a folder

Nothing here needs PyTorch or `transformers`.
"""
