"""How many answers a client may have, and who counts them."""

import json
import multiprocessing
import threading

import pytest

from entropy_attn.errors import UserError
from entropy_attn.private.parties import client
from entropy_attn.private.parties.quota import Asked, Quota, answer

HOUR = 3600.0


class Clock:
  seconds = 1000 * HOUR

  def __call__(self):
    return self.seconds


def test_each_client_has_its_own_answers_and_has_them_again_after_a_day():
  clock = Clock()
  quota = Quota(3, now=clock)
  assert [quota.take("a") for _ in range(4)] == [True, True, True, False]
  assert quota.left("a") == 0 and quota.left("b") == 3 and quota.take("b")
  clock.seconds += 23 * HOUR
  assert not quota.take("a") and quota.left("b") == 2
  clock.seconds += 2 * HOUR
  assert quota.left("a") == 3 and quota.take("a")


def test_a_file_outlives_the_server(tmp_path):
  path = tmp_path / "quota.json"
  quota = Quota(3, path, Clock())
  assert quota.take("a") and quota.take("a")
  with pytest.raises(UserError, match="is that of another server: process"):
    Quota(3, path)
  quota._lock.release()
  assert Quota(3, path, Clock()).left("a") == 1


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', '{"a": {"x": 1}}', '{"a": {"1": "x"}}', '{"a": {"1": null}}'])
def test_a_file_without_counts_is_refused(tmp_path, text):
  path = tmp_path / "quota.json"
  path.write_text(text)
  with pytest.raises(UserError, match="holds no counts of answers"):
    Quota(3, path)


class Process:
  """Stands for one that never ends by itself."""

  def __init__(self):
    self.sentinel, self._kept = multiprocessing.Pipe()


def test_a_process_asks_until_it_ends(tmp_path):
  mine, its = multiprocessing.Pipe()
  path = tmp_path / "quota.json"
  quota, said = Quota(2, path), []
  thread = threading.Thread(target=answer, args=(quota, mine, Process(), said.append))
  thread.start()
  asked = Asked(its, "a")
  assert (asked.left(), asked.take(), asked.left()) == (2, True, 1)
  assert list(json.loads(path.read_text())["a"].values()) == [1]
  (tmp_path / ".quota.json.unfinished").mkdir()  # nothing can be written
  assert (asked.take(), asked.take()) == (True, False)
  its.close()
  thread.join(30)
  assert not thread.is_alive()
  assert len(said) == 1 and "a restart will forget" in said[0]


def test_a_client_asks_for_no_more_than_is_left():
  for left in (None, 8, 9, "x"):
    client._check_quota(left, 8)
  for left, text in ((7, r"7 answer\(s\) left .*: ask for --tokens=7"), (0, r"0 answer\(s\) left .*: ask again later")):
    with pytest.raises(UserError, match=text):
      client._check_quota(left, 8)
