"""Weights that other processes are given, and no file is left of."""

import multiprocessing
import os
import pathlib
import tempfile

import numpy as np
import pytest

from entropy_attn.private.parties.unnamed import Unnamed


def total(kept, sender):
  arrays = kept.arrays()
  sender.send({name: arrays[name].sum().item() for name in sorted(arrays)})


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_process_reads_them_and_the_next_too_and_they_have_no_name(in_memory, monkeypatch, tmp_path):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  if not in_memory:
    monkeypatch.delattr(os, "memfd_create", raising=False)
  kept = Unnamed({"layer.0/kernel": np.arange(1000.0), "b": np.ones(3, np.int64)})
  spawn = multiprocessing.get_context("spawn")
  for _ in range(2):
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=total, args=(kept, sender))
    process.start()
    sender.close()
    assert receiver.recv() == {"b": 3, "layer.0/kernel": 499500.0}
    process.join()
  assert list(pathlib.Path(tmp_path).iterdir()) == []
