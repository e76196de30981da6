"""The Hub, played by a local server: downloads, its cache, and how its absence is reported."""

import contextlib
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest
from waiting import PATIENCE

from entropy_attn.data import tokenizer

_ROOT = pathlib.Path(__file__).parents[2]
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_TRAIN, _VALID = "huggingface-course/codeparrot-ds-train", "huggingface-course/codeparrot-ds-valid"
_TOKENIZER = "huggingface-course/code-search-net-tokenizer"
_PREPARE = """
import sys
from tests.data.small_configs import make_config
from entropy_attn.data import pipeline
from entropy_attn.errors import UserError
config = make_config(sys.argv[1], data__name="codeparrot", data__tokenizer=sys.argv[2], data__path="")
try:
  print(len(pipeline.prepare(config).train))
except UserError as error:
  print("UserError:", error)
"""


def _prepare(tmp_path, endpoint, name=_TOKENIZER):
  environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
  environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
  environment["NO_PROXY"] = "127.0.0.1"
  result = subprocess.run(
      [sys.executable, "-c", _PREPARE, str(tmp_path / "built"), name],
      cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  return result.stdout.strip()


@contextlib.contextmanager
def _hub(repositories):
  """A server of {"datasets/owner/name" or "models/owner/name": {file: bytes}} that speaks as much as is needed."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
      path = self.path.split("?")[0].strip("/")
      if path.startswith("api/") and path.count("/") < 3:
        return self._answer(404, b"", {})
      if path.startswith("api/"):
        kind, owner, name, *rest = path.removeprefix("api/").split("/")
        files = repositories.get(f"{kind}/{owner}/{name}")
        if files is None:
          self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
          self._json([{"type": "file", "path": f, "size": len(c), "oid": _tag(c)} for f, c in files.items()])
        else:
          siblings = [{"rfilename": f} for f in files]
          self._json({"id": f"{owner}/{name}", "sha": _COMMIT, "siblings": siblings, "tags": [], "downloads": 0})
        return
      repository, file = path.split("/resolve/")
      repository = repository if repository.startswith("datasets/") else f"models/{repository}"
      content = repositories[repository][file.split("/", 1)[1]]
      self._answer(200, content, {"ETag": f'"{_tag(content)}"', "X-Repo-Commit": _COMMIT})

    do_HEAD = do_GET

    def _json(self, value):
      self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status, content, headers):
      self.send_response(status)
      for name, value in {**headers, "Content-Length": str(len(content))}.items():
        self.send_header(name, value)
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(content)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}"
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def _tag(content):
  return hashlib.sha1(content).hexdigest()


def _rows(texts):
  return gzip.compress("".join(json.dumps({"content": text}) + "\n" for text in texts).encode())


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, texts):
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  tokenizer.train(texts, 300, path)
  model = json.loads(path.read_text())["model"]
  return {
    f"datasets/{_TRAIN}": {"README.md": b"", "ds_train.json.gz": _rows(texts[:16])},
    f"datasets/{_VALID}": {"README.md": b"", "ds_valid.json.gz": _rows(texts[16:20])},
    f"models/{_TOKENIZER}": {
      "vocab.json": json.dumps(model["vocab"]).encode(),
      "merges.txt": "\n".join(" ".join(pair) for pair in model["merges"]).encode(),
    },
  }


def test_downloads_once_and_works_from_the_cache(tmp_path, repositories):
  with _hub(repositories) as endpoint:
    first = _prepare(tmp_path, endpoint)
  assert int(first) > 100
  again = _prepare(tmp_path, endpoint)  # the server is gone
  assert again == first


@contextlib.contextmanager
def _nobody():
  """An address where each connection ends without a word, and how many there were."""
  connections = []
  with socket.create_server(("127.0.0.1", 0)) as listening:

    def hang_up():
      with contextlib.suppress(OSError):  # the test is over
        while True:
          connections.append(listening.accept())
          connections[-1][0].close()

    threading.Thread(target=hang_up, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", connections
    listening.shutdown(socket.SHUT_RDWR)


def test_without_network_it_says_what_to_do_and_does_not_go_on_asking(tmp_path):
  with _nobody() as (endpoint, connections):
    message = _prepare(tmp_path, endpoint)
  assert len(connections) <= 2  # a question, and perhaps once more; a download would go on asking for half a minute
  assert message.startswith("UserError: data.name=codeparrot: the Hub cannot be reached")
  assert message.endswith("--config.data.name=python_source")
  assert f"dataset '{_TRAIN}' is not in its local cache" in message
  assert "--config.data.path=FOLDER" in message
  assert "--config.data.tokenizer=FILE" in message
  assert "\n" not in message


def test_unknown_repository_is_named(tmp_path, repositories):
  with _hub(repositories) as endpoint:
    message = _prepare(tmp_path, endpoint, name="nobody/nothing")
  assert message.startswith("UserError: data.tokenizer='nobody/nothing': the Hub has no public model")
  assert "\n" not in message
