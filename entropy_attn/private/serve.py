"""Serves a model to clients that generate privately: it never sees a prompt, and they never see a weight.

    python -m entropy_attn.private.serve --checkpoint=runs/quickstart --port=9700

Each client is served by a process of its own, one after the other; a lost client ends its process alone. Who waits is
told how many are before it.
"""

from absl import flags as absl_flags

from entropy_attn import cli, paths
from entropy_attn.errors import UserError
from entropy_attn.private import flags, line

FLAGS = absl_flags.FLAGS


def define_flags() -> None:
  """Defines the command's flags."""
  flags.define_model()
  absl_flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine's.")
  absl_flags.DEFINE_integer("port", 9700, "Port to listen on.", lower_bound=0, upper_bound=65535)
  flags.define_plan()
  flags.define_transforms()
  flags.define_error()
  flags.define_reveal("argmax")
  absl_flags.DEFINE_bool("once", False, "End after one client.")
  absl_flags.DEFINE_integer(
    "quota", 0, "Answers (tokens) of each certificate, or address without TLS, in 24 hours; 0: any number.",
    lower_bound=0,
  )  # fmt: skip
  absl_flags.DEFINE_float("max_session", 0.0, "Seconds that one client may take; 0: any time.", lower_bound=0.0)
  cli.define_path("quota_file", None, "Keeps what --quota counts, so that a restart does not forget it.")
  cli.define_path("material", None, "Folder for what clients make ahead of their prompts (private.prepare).")
  absl_flags.DEFINE_float("material_most", 16.0, "GiB of it from which no more is made.", lower_bound=0.0)
  line.define()
  cli.add_check(lambda: line.check_host("host", FLAGS.host.strip("[]")))
  cli.add_check(_check_quota)


def _check_quota() -> None:
  if FLAGS.quota_file is not None:
    if not FLAGS.quota:
      raise UserError("--quota_file needs --quota")
    paths.check_writable(FLAGS.quota_file, "--quota_file")


def main() -> None:
  """Serves until Ctrl-C, SIGTERM or SIGHUP, or one client with --once."""
  # Here, not above: a mistake in what was typed is answered before what takes seconds to import.
  from entropy_attn.private.parties import engine, server, sockets
  from entropy_attn.private.parties.quota import Quota
  from entropy_attn.private.parties.store import Store

  engine.core()
  tls, timeout, threads = line.party(server=True)
  host = FLAGS.host.strip("[]")  # of an IPv6 address
  quota = Quota(FLAGS.quota, FLAGS.quota_file) if FLAGS.quota else None
  if FLAGS.material is not None:
    Store(FLAGS.material)  # so that a folder that cannot be used is known now
  listening = sockets.listen(host, FLAGS.port)
  port = listening.getsockname()[1]  # with --port=0 one that was free
  model = flags.load_model()
  offered, weights = server.offer(model, flags.transforms_of(model.config.model), flags.error(), **flags.reveal())
  server.say(f"{model.description}: serving on {FLAGS.host}:{port}" + (" with TLS" if tls else ""))
  if quota is not None and tls is None:
    server.say("--quota counts by address: without TLS no certificate tells clients apart")
  options = {"tls": tls, "timeout": timeout, "threads": threads, "once": FLAGS.once, "quota": quota}
  options |= {"max_session": FLAGS.max_session}
  options |= {"material": FLAGS.material, "material_most": FLAGS.material_most * 2**30}
  try:
    server.serve(offered, weights, listening, **options)
  except KeyboardInterrupt:
    raise UserError("stopped by Ctrl-C") from None


if __name__ == "__main__":
  cli.run(define_flags, main)
