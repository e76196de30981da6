"""What a run's reporter says and records of its steps and evaluations."""

from events import hparams, images, shown
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import api_pb2

from entropy_attn import config as config_lib
from entropy_attn import entropy
from entropy_attn.divergence import NonFinite
from entropy_attn.reporter import Reporter
from entropy_attn.run import metrics


@pytest.fixture
def reporter(tmp_path):
  config = config_lib.codeparrot("quick", "ereg")
  config.train.update(steps=4, log_every=2)
  return Reporter(config, tmp_path, 0)


def step(loss=3.0):
  ok = jnp.isfinite(jnp.array(loss))
  zeros = jnp.zeros(6)
  return {"loss": jnp.array(loss), "finite": ok, "entropy_LxH": jnp.full((6, 4), 2.0), "grad_norm_L": zeros} | {
    "nonfinite_rows_L": zeros, "nonfinite_tokens_L": zeros,
  }  # fmt: skip


def evaluation(**more):
  heads = entropy.head_statistics(np.full((6, 4), 2.0), 3.9)
  return {"loss": 3.0, "perplexity": 20.1, "tokens": 5, "sequences": 1, "nonfinite_rows_L": np.zeros(6), **heads} | more


def test_an_evaluation_is_a_line_a_record_and_a_picture(reporter, tmp_path, capsys):
  reporter.evaluated(2, evaluation())
  reporter.evaluated(3, evaluation(bits_per_byte=None))
  reporter.evaluated(4, evaluation(bits_per_byte=1.2345))
  reporter.close()
  starts = [line.partition(";")[0] for line in capsys.readouterr().err.splitlines()]
  line = "loss 3.0000, PPL 20.10"
  assert starts == [f"step 2: {line}", f"step 3: {line}", f"step 4: {line}, 1.234 bits/byte"]
  assert [record["step"] for record in metrics.read(tmp_path, "eval")] == [2, 3, 4]
  assert shown(tmp_path)["eval/bits_per_byte", 4] == pytest.approx(1.2345)
  sizes = images(tmp_path)
  assert set(sizes) == {("heads", 2), ("heads", 3), ("heads", 4)} and min(min(size) for size in sizes.values()) > 100


def test_the_table_of_runs_has_the_config_the_end_and_the_last_perplexity(reporter, tmp_path):
  reporter.evaluated(2, evaluation())
  assert hparams(tmp_path, "session_end_info") == []
  reporter.evaluated(4, evaluation(perplexity=19.0))
  reporter.close()
  (start,), (end,) = hparams(tmp_path, "session_start_info"), hparams(tmp_path, "session_end_info")
  assert start.hparams["architecture"].string_value == "EReg(SM(t)+ScFuFFN)"
  assert start.hparams["model.num_layers"].number_value == 6
  assert end.status == api_pb2.STATUS_SUCCESS
  assert shown(tmp_path)["eval/PPL", 4] == 19.0


def test_a_run_that_diverged_has_failed_in_the_table_and_its_last_step_is_recorded(reporter, tmp_path):
  for number, loss in ((1, 3.0), (2, 2.9), (3, np.nan)):
    reporter.add(number, step(loss))
  with pytest.raises(NonFinite):
    reporter.pause()
  reporter.close()
  assert [(record["step"], record["loss"]) for record in metrics.read(tmp_path, "train")] == [
    (2, pytest.approx(2.9)), (3, None),
  ]  # fmt: skip
  assert [end.status for end in hparams(tmp_path, "session_end_info")] == [api_pb2.STATUS_FAILURE]
