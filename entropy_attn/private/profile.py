"""Runs a model as real two-party computation on this machine, and accounts every byte by operation and by layer.

    python -m entropy_attn.private.profile --checkpoint=runs/quickstart
    python -m entropy_attn.private.profile --config=configs/codeparrot_scfuffn.py --layers=2

Two processes over loopback TCP: the server holds the weights, the client the tokens; only the client learns the logits.
"""

import collections
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import pathlib
import socket
import tempfile
import time

from absl import flags
import numpy as np

from entropy_attn import cli, run_folder
from entropy_attn.config import architecture_name
from entropy_attn.errors import UserError
from entropy_attn.private import build, engine, party, prepare, program, ranges, source, wire
from entropy_attn.private import spec as spec_lib
from entropy_attn.private.program import CLIENT, SERVER
from entropy_attn.private.show import Steps, grouped, table
from entropy_attn.report import private as figures

CALIBRATION = 8  # sequences whose ranges are looked at
_FIELDS = ("server_to_client", "client_to_server", "bytes", "messages", "rounds", "seconds")


@dataclasses.dataclass(frozen=True)
class Link:
  """The line between the parties that is imitated; zero and None: none is."""

  rtt: float = 0.0  # seconds
  bandwidth: float | None = None  # bytes a second, each way


def profile(
  model: source.Source,
  transforms: spec_lib.Transforms,
  *,
  length: int,
  layers: int | None = None,
  error: float = ranges.ERROR,
  link: Link = Link(),
  threads: int = 0,
  show: bool = True,
) -> dict:
  """One inference in two processes, and what it took.

  Args:
    length: tokens of the prompt.
    layers: how many of the layers to run; the rest are taken to cost what an equal layer did. None: all.
    error: of each layer's exponential.
    link: a line to imitate.
    threads: of each party; 0: all cores.
    show: a progress bar.

  Returns:
    total_bytes, rounds, seconds, max_abs_error, peak_rss_bytes, by_operation, by_layer, and how they came about.

  Raises:
    UserError: for what the user can mend.
  """
  c = model.config.model
  if not 0 < length <= c.context_length:
    raise UserError(f"--length={length} must be between 1 and the model's {c.context_length} positions")
  if layers is not None and not 2 <= layers <= c.num_layers:
    raise UserError(f"--layers={layers} must be between 2 and the model's {c.num_layers} layers")
  engine.core()
  private, tightest = private_model(model, transforms, error, length)
  tokens = model.sequences(1, length)[0]
  built = build.build(private.spec, length, layers=layers)
  reference = np.asarray(exact_logits(model, transforms, tokens, layers=layers))
  results = two_processes(private, tokens[None], link, threads, show, layers=layers)
  rows = _merged(built, results[SERVER]["records"], results[CLIENT]["records"])
  measured = {name: sum(row[name] for row in rows) for name in ("bytes", "rounds", "seconds")}
  rows, exact = _extrapolated(rows, built, build.build(private.spec, length), c.num_layers)
  total = {name: sum(row[name] for row in rows) for name in ("bytes", "rounds", "seconds")}
  (logits,) = results[CLIENT]["logits"]
  return {
    "architecture": architecture_name(model.config),
    "model": model.description,
    "config": {"model": c.to_dict()},
    "num_layers": c.num_layers,
    "num_heads": c.num_heads,
    "d_model": c.d_model,
    "vocab_size": c.vocab_size,
    "length": length,
    "transforms": dataclasses.asdict(transforms),
    "squares": [len(layer.exponential.offsets) if layer.exponential else None for layer in private.spec.layers],
    "lowest_exponents": [layer.exponential.low if layer.exponential else None for layer in private.spec.layers],
    "kept_ffns": list(private.kept_ffns),
    "condition_numbers": list(private.condition_numbers),
    "tightest_range": dataclasses.asdict(tightest) | {"place": tightest.place, "spare_bits": tightest.spare_bits},
    "total_bytes": total["bytes"],
    "rounds": total["rounds"],
    "seconds": total["seconds"],
    "measured_layers": layers or c.num_layers,
    "measured_bytes": measured["bytes"],
    "extrapolation_exact": exact,
    "max_abs_error": float(np.max(np.abs(logits - reference[-len(logits) :]))),
    "largest_logit": float(np.max(np.abs(reference))),
    "same_next_token": bool(np.argmax(logits[-1]) == np.argmax(reference[-1])),
    "peak_rss_bytes": {role: results[role]["peak_rss_bytes"] for role in (SERVER, CLIENT)},
    "by_operation": grouped(rows, "operation", _FIELDS),
    "by_layer": _by_layer(rows),
    "link": dataclasses.asdict(link),
    "threads": results[CLIENT]["threads"],
    "environment": run_folder.describe() | {"engine": engine.version()},
  }


def private_model(model: source.Source, transforms, error: float, length: int) -> tuple[prepare.Model, ranges.Range]:
  """The model with exponentials chosen for its own text, and the tightest of its ranges there.

  Raises:
    UserError: where transforms contradict the architecture, or numbers would leave the range of fixed point.
  """
  c = model.config.model
  spec_lib.check(transforms, c)
  text = model.sequences(CALIBRATION, length, split="train")
  chosen = ranges.choose_exponentials(model.variables, c, transforms, text, error)
  private = prepare.prepare(model.variables, c, transforms, chosen)
  return private, ranges.check(ranges.measure(private, text))


def exact_logits(model: source.Source, transforms, tokens: np.ndarray, **options):
  """In the clear, with exact exponentials and activations: [1 or N, V]. Options are those of `build.build`."""
  plain = prepare.prepare(model.variables, model.config.model, transforms.exactly(), ())
  built = build.build(plain.spec, len(tokens), **options)
  inputs = build.server_inputs(plain.weights, len(tokens)) | build.client_inputs(plain.spec, tokens)
  return program.run_plain(built, inputs)["logits"]


def two_processes(
  private: prepare.Model, tokens_SxN: np.ndarray, link: Link, threads: int, show: bool, **options
) -> dict[str, dict]:
  """Runs some sequences as two parties in processes of their own.

  Args:
    options: of `build.build`.

  Returns:
    By role, the records of all steps, threads and peak_rss_bytes; at the client the logits of each sequence.

  Raises:
    UserError: where one of them fails.
  """
  spawn = multiprocessing.get_context("spawn")
  with tempfile.TemporaryDirectory() as folder:
    weights = pathlib.Path(folder) / "weights.npz"
    np.savez(weights, **private.weights)
    port, port_sender = spawn.Pipe(duplex=False)
    jobs = {
      SERVER: (_serve, (port_sender, private.spec.to_json(), weights, tokens_SxN.shape, link, threads, options, show)),
      CLIENT: (_ask, (port, tokens_SxN, link, threads, options)),
    }
    running = {}
    for role, (work, args) in jobs.items():
      receiver, sender = spawn.Pipe(duplex=False)
      process = spawn.Process(target=_child, args=(sender, work, args), daemon=True)
      process.start()
      sender.close()
      running[role] = (process, receiver)
    return _collected(running)


def _collected(running: Mapping) -> dict:
  results = {}
  waiting = {receiver: role for role, (_, receiver) in running.items()}
  while waiting:
    for receiver in multiprocessing.connection.wait(list(waiting)):
      role = waiting.pop(receiver)
      try:
        status, value = receiver.recv()
      except EOFError:
        status, value = "error", f"it ended without a word (exit code {running[role][0].exitcode})"
      if status == "error":
        for process, _ in running.values():
          process.terminate()
        raise UserError(f"the {role}'s process failed: {value}")
      results[role] = value
  for process, _ in running.values():
    process.join()
  return results


def _child(sender, work, args) -> None:
  try:
    sender.send(("done", work(*args)))
  except (UserError, wire.PeerLost, party.Impossible) as error:
    sender.send(("error", str(error)))
  except Exception as error:
    sender.send(("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
    raise


def _serve(port_sender, spec_json: str, weights: pathlib.Path, shape, link: Link, threads, options, show) -> dict:
  with socket.create_server(("127.0.0.1", 0)) as listening:
    port_sender.send(listening.getsockname()[1])
    sock, _ = listening.accept()
  spec = spec_lib.Spec.from_json(spec_json)
  bar = Steps("private inference") if show else lambda *_: None
  with _session(sock, SERVER, link, threads, {"spec": spec_json}, spec, np.load(weights), bar) as session:
    for _ in range(shape[0]):
      session.run(shape[1], **options)
      session.restart()
  return {"records": session.records, "peak_rss_bytes": party.peak_bytes()}


def _ask(port, tokens_SxN: np.ndarray, link: Link, threads, options) -> dict:
  sock, logits = socket.create_connection(("127.0.0.1", port.recv())), []
  with _session(sock, CLIENT, link, threads) as session:
    for tokens in tokens_SxN:
      logits.append(session.run(len(tokens), tokens, **options))
      session.restart()
  return {
    "records": session.records, "logits": logits, "threads": session.threads, "peak_rss_bytes": party.peak_bytes(),
  }  # fmt: skip


@contextlib.contextmanager
def _session(sock, role, link: Link, threads, offered=None, spec=None, weights=None, on_step=lambda *_: None):
  connection = wire.Connection(sock, rtt=link.rtt, bandwidth=link.bandwidth)
  with party.watched(connection, SERVER if role == CLIENT else CLIENT):
    theirs = party.greet(connection, role, offered, threads)
    spec = spec or spec_lib.Spec.from_json(theirs["spec"])
    yield party.Session(connection, role, spec, weights, threads=theirs["threads"], on_step=on_step)
    connection.close()


def _merged(built: program.Program, server: Sequence[party.Record], client: Sequence[party.Record]) -> list[dict]:
  """One row a step, of both parties' records: bytes each way, rounds, seconds."""
  return [
    {
      "layer": s.layer,
      "operation": s.kind,
      "server_to_client": s.sent,
      "client_to_server": c.sent,
      "bytes": s.sent + c.sent,
      "messages": s.messages + c.messages,
      "rounds": max(s.rounds, c.rounds),
      "seconds": max(s.seconds, c.seconds),
    }
    for s, c in zip(server, client, strict=True)
  ]


def _extrapolated(rows: list[dict], part: program.Program, whole: program.Program, num_layers: int):
  """The rows of the whole model, and whether each layer that was not run has an equal one that was."""
  of_layer = collections.defaultdict(list)
  for row in rows:
    of_layer[row["layer"]].append(row)
  signatures = functools.partial(_signature, part), functools.partial(_signature, whole)
  measured = [name for name in of_layer if name.isdigit()]
  if len(measured) == num_layers:
    return rows, True
  alike = collections.defaultdict(list)
  for name in measured:
    alike[signatures[0](int(name))].append(of_layer[name])
  exact, out = True, of_layer["setup"] + of_layer["embedding"]
  for layer in range(num_layers):
    same = alike.get(signatures[1](layer))
    exact &= same is not None
    out += [_mean(rows) | {"layer": str(layer)} for rows in zip(*(same or [of_layer[measured[0]]]), strict=True)]
  return out + of_layer["head"], exact


def _mean(rows: Sequence[dict]) -> dict:
  """Of the same step of several layers."""
  numbers = {name for name, value in rows[0].items() if not isinstance(value, str)}
  return rows[0] | {name: sum(row[name] for row in rows) / len(rows) for name in numbers}


def _signature(built: program.Program, layer: int) -> tuple:
  """What a layer's cost depends on: the steps with their options, but for the numbers of an exponential."""

  def option(name, value):
    return len(value.offsets) if name == "exponential" else None if name == "low" else value

  return tuple(
    (step.kind, step.function, tuple((name, option(name, value)) for name, value in step.options), step.ring)
    for step in built.steps
    if step.layer == layer
  )


def _by_layer(rows: list[dict]) -> dict:
  """Of each layer the sums, and those of its operations."""
  layers = grouped(rows, "layer", _FIELDS)
  return {
    name: group | {"by_operation": grouped([r for r in rows if r["layer"] == name], "operation", _FIELDS)}
    for name, group in layers.items()
  }


def text(result: Mapping) -> str:
  """The result as tables."""
  tightest = result["tightest_range"]
  parts = [
    f"{result['model']}: {result['length']} tokens, {result['threads']} threads a party",
    table("operation", result["by_operation"], by_size=True),
    table("layer", result["by_layer"]),
    f"largest error of a logit {result['max_abs_error']:.2g} (logits up to {result['largest_logit']:.3g}); "
    f"next token {'the same' if result['same_next_token'] else 'ANOTHER'}",
    f"range: {tightest['place']} comes nearest to what its ring holds: {tightest['spare_bits']:.1f} doublings are left",
    "peak memory: " + ", ".join(f"{role} {size / 2**30:.2f} GiB" for role, size in result["peak_rss_bytes"].items()),
  ]
  if result["transforms"]["eliminate_ffns"]:
    kept = ", ".join(map(str, result["kept_ffns"])) or "none"
    parts.append(f"FFNs kept: {kept}; the basis is conditioned up to {max(result['condition_numbers']):.3g}")
  if result["measured_layers"] < result["num_layers"]:
    how = (
      "equal layers cost the same, but for the engine's stock of transfers, filled up now and then"
      if result["extrapolation_exact"]
      else "approximate: some layers have no equal"
    )
    parts.append(
      f"{result['measured_layers']} of {result['num_layers']} layers were run "
      f"({result['measured_bytes'] / 1e9:.3f} GB); the rest is extrapolated: {how}"
    )
  return "\n\n".join(parts)


if __name__ == "__main__":
  flags_of_source = source.define_flags()
  transforms_flag = flags.DEFINE_string(
    "transforms", "", "name=value,… of private.spec.Transforms, e.g. triangle=off; or stock: none at all."
  )
  length_flag = flags.DEFINE_integer("length", None, "Tokens of the prompt; default: the model's context length.")
  layers_flag = flags.DEFINE_integer("layers", None, "Run so many layers and extrapolate.")
  error_flag = flags.DEFINE_float("error", ranges.ERROR, "Of each layer's exponential: see private.approximate.")
  rtt_flag = flags.DEFINE_float("rtt", 0.0, "Round-trip time in ms to imitate.")
  bandwidth_flag = flags.DEFINE_float("bandwidth", None, "Mbit/s each way to imitate.")
  threads_flag = flags.DEFINE_integer("threads", 0, "Of each party; 0: all cores.")
  json_flag = flags.DEFINE_string("json", None, "Also write the figures to this file.")

  def main() -> None:
    started = time.monotonic()
    model = source.load(flags_of_source)
    result = profile(
      model,
      spec_lib.transforms_for(model.config.model, transforms_flag.value),
      length=model.config.model.context_length if length_flag.value is None else length_flag.value,
      layers=layers_flag.value,
      error=error_flag.value,
      link=Link(rtt_flag.value / 1e3, bandwidth_flag.value and bandwidth_flag.value * 1e6 / 8),
      threads=threads_flag.value,
    )
    print(text(result))
    cli.write_json(json_flag.value, result)
    if model.folder is not None:
      path = model.folder / "private_profile.json"
      cli.write_json(str(path), result)
      figures.write_profile(result, path.with_suffix(".png"))
      print(f"\nsaved in {path} and {path.with_suffix('.png').name}; {time.monotonic() - started:.0f} s in all")

  cli.run(main)
