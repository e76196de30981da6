"""What is told of a result that cannot be."""

import hashlib

import numpy as np
from private.commands import needs_engine
from private.models import LINEAR, make
import pytest

from entropy_attn.private.parties.check import Impossible, check_sequences, circumstances
from entropy_attn.private.program import spec as spec_lib
from entropy_attn.private.program import squares


def test_nothing_is_raised_where_nothing_failed():
  check_sequences({}, 3)


@pytest.mark.parametrize(
  "failed,count,parts",
  [
    ((1,), 3, ["sequence 1 of 3", "sequences 0, 2 were right", "of run r, seed 5"]),
    ((0, 2), 4, ["sequence 0 of 4", "sequences 0, 2 failed", "sequences 1, 3 were right"]),
    ((0,), 1, ["sequence 0 of 1", "none was right"]),
  ],
)
def test_the_first_failure_is_told_in_full_and_which_sequences_were_right(failed, count, parts):
  with pytest.raises(Impossible) as error:
    check_sequences({i: Impossible(i + 7, f"tokens {i}{i}{i}") for i in failed}, count, "run r, seed 5")
  text = str(error.value)
  assert all(part in text for part in [*parts, f"tokens {failed[0]}{failed[0]}{failed[0]}"]), text
  assert text.startswith(f"{failed[0] + 7} row(s) are none that a softmax or a LayerNorm gives")


@needs_engine
def test_few_tokens_are_told_one_by_one_and_of_many_the_digest():
  config, _ = make(LINEAR)
  fit = squares.exponential(5e-3, -8.0)
  spec = spec_lib.of_config(config.model, spec_lib.transforms_for(config.model), (fit, fit))
  facts = {"digest": "ab" * 32, "settings": spec_lib.Settings.of(spec), "how": "by hand"}
  few, many = np.arange(5), np.arange(300)
  assert "tokens 0,1,2,3,4" in circumstances(spec, few, np.ones((1, 3)), **facts)
  text = circumstances(spec, many, np.full((1, 3), np.inf), past=9, layers=1, **facts)
  assert hashlib.sha256(many.astype("<i4").tobytes()).hexdigest() in text
  assert "300 tokens after 9, 1 layers" in text and "logits up to inf" in text and "program abababab" in text
