"""Serves the report on this machine alone, and renders it anew when something was recorded."""

from collections.abc import Callable
import contextlib
import http.server
import pathlib
import threading

from entropy_attn import paths
from entropy_attn.errors import UserError, one_line
from entropy_attn.progress import say
from entropy_attn.report.page import data, page

SECONDS = 2.0  # between two looks at the folder


class Served:
  """The report as it is served: its text, and a version that changes with it."""

  def __init__(self, workdir: pathlib.Path, path: pathlib.Path):
    self._workdir, self._path = workdir, path
    self._seen, self._said = None, None
    self.version, self.text = 0, b""

  def refresh(self) -> bool:
    """Renders anew where something was recorded; what cannot be rendered is told once, and the last report stays."""
    try:
      seen = data.signature(self._workdir)
      if seen == self._seen:
        return False
      file, text = page.render_both(self._workdir)
      paths.write_text(self._path, file, "--out")
    except (UserError, OSError) as error:
      if one_line(error) != self._said:
        self._said = one_line(error)
        say(f"note: the report stays as it was: {self._said}")
      return False
    self._seen, self._said = seen, None
    self.text, self.version = text.encode(), self.version + 1
    return True


def serve(
  workdir: pathlib.Path,
  path: pathlib.Path,
  port: int = 0,
  *,
  on_ready: Callable[[str], None],
  stop: threading.Event | None = None,
) -> None:
  """Serves the report until Ctrl-C, or until `stop` is set.

  Args:
    path: where it is written, too.
    on_ready: called with the address once it can be opened.

  Raises:
    UserError: where the port is taken.
  """
  served, stop = Served(workdir, path), stop or threading.Event()
  served.refresh()
  try:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler(served))
  except OSError as error:
    raise UserError(f"--port={port} cannot be listened on: {error.strerror}: choose another, or 0 for any") from error
  with server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    on_ready(f"http://127.0.0.1:{server.server_address[1]}/")
    with contextlib.suppress(KeyboardInterrupt):
      while not stop.wait(SECONDS):
        served.refresh()
    server.shutdown()


def _handler(served: Served):
  class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the report or its version, to whoever asks for this very machine by its name."""

    def do_GET(self) -> None:
      port = self.server.server_address[1]
      if self.headers.get("Host") not in (
        f"127.0.0.1:{port}",
        f"localhost:{port}",
      ):  # a name that leads here by a trick
        self.send_error(403)
      elif self.path.partition("?")[0] == "/":
        self._answer(served.text, "text/html; charset=utf-8")
      elif self.path == "/version":
        self._answer(str(served.version).encode(), "text/plain")
      else:
        self.send_error(404)

    def _answer(self, content: bytes, kind: str) -> None:
      self.send_response(200)
      self.send_header("Content-Type", kind)
      self.send_header("Content-Length", str(len(content)))
      self.send_header("Cache-Control", "no-store")
      self.end_headers()
      with contextlib.suppress(ConnectionError):
        self.wfile.write(content)

    def log_message(self, *_) -> None:
      """Says nothing of a request."""

  return Handler
