"""Measures the engine's protocols, for `primitives`: writes calibration.json.

    python -m entropy_attn.private.calibrate     (10 minutes on two cores, which nothing else should use)

Each is run in programs of its own at several sizes, over a connection within this process. Bytes and rounds depend on
the engine's version and settings alone; seconds on this machine.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import socket
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from entropy_attn import cli
from entropy_attn.private import build, engine, primitives, program
from entropy_attn.private.machine import Party
from entropy_attn.private.program import CLIENT, NARROW, SERVER, SHARED, WIDE, Step, Variable
from entropy_attn.private.steps import SET_UP
from entropy_attn.private.wire import Connection, Counts

THREADS = 2
SETTINGS = {
  "cheap": engine.Settings(1, True, "EMP_Ferret"),
  "stock": engine.Settings(8, False, "YACL_Ferret"),
}
RINGS = (("cheap", WIDE), ("cheap", NARROW), ("stock", WIDE))
SIZES = (512, 2048, 6000, 20000, 66000, 150000)
SMALL = (512, 2048, 6000, 20000, 98304)  # of protocols made of many
MATRICES = (
  (128, 768, 768),
  (16, 64, 64),
  (64, 128, 512),
  (128, 256, 256),
  (1, 768, 4096),
  (128, 64, 128),
  (128, 128, 64),
  (8, 1024, 512),
)
REPEATS = 3


class Bench:
  """Two parties of one process."""

  def __init__(self, settings: engine.Settings, ring: int, threads: int = THREADS):
    engine.core()
    self._settings, self._ring = settings, ring
    self._connections = [Connection(sock) for sock in socket.socketpair()]
    self._parties: list = [None, None]

    def start(i, role):
      self._parties[i] = Party(self._connections[i], role, settings, threads)

    self._both(start)
    (step,) = build.set_up(threads, [ring]).steps
    ones = np.ones(max(2048 * threads, SET_UP), np.float32)
    make = functools.partial(step, program.Engine(one_square=settings.exp_iterations == 1, diagonal=False))
    self.set_up = self.measure(make, [ones], (SHARED,), first=True)

  def measure(
    self,
    fn: Callable,
    arrays: Sequence[np.ndarray],
    owners: Sequence[str],
    *,
    repeats: int = REPEATS,
    first: bool = False,
  ) -> primitives.Cost:
    """Bytes, rounds and seconds of fn, on average; of its first run alone if `first`."""
    visibility = ["PRIVATE" if owner in engine.RANKS else "SECRET" for owner in owners]
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    code = engine.compile_function(fn, args, visibility)
    names = tuple(f"x{i}" for i in range(len(arrays)))
    step = Step(None, "measured", fn, (), names, ("y",), self._ring)
    variables = [Variable(a.shape, owner, a.dtype.name) for a, owner in zip(arrays, owners, strict=True)]
    results: list[list[tuple[Counts, float]]] = [[], []]

    def run(i, role):
      connection, party = self._connections[i], self._parties[i]
      for name, variable, array in zip(names, variables, arrays, strict=True):
        mine = variable.owner in (role, SHARED if role == CLIENT else None)
        party.give(name, variable, array if mine else None)
      for repeat in range(1 if first else repeats + 1):
        before, started = connection.counts(), time.perf_counter()
        party.run(step, code)
        if repeat or first:
          results[i].append((connection.counts() - before, time.perf_counter() - started))
      for name in (*names, "y"):
        party.forget(name)

    self._both(run)
    pairs = list(zip(*results, strict=True))
    mean = lambda pick: float(np.mean([pick(a, b) for a, b in pairs]))
    return primitives.Cost(
      bytes=mean(lambda a, b: a[0].sent + b[0].sent),
      rounds=mean(lambda a, b: max(a[0].chain, b[0].chain) / 2),
      seconds=min(max(a[1], b[1]) for a, b in pairs),
    )

  def _both(self, work) -> None:
    errors = []

    def guarded(i, role):
      try:
        work(i, role)
      except Exception as error:
        errors.append(error)
        self._connections[i].fail("the other party failed")

    threads = [threading.Thread(target=guarded, args=pair) for pair in enumerate((SERVER, CLIENT))]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    if errors:
      raise errors[0]


def set_up_cost(setting: str, ring: int, threads: int) -> primitives.Cost:
  """Of the engine's keys."""
  return Bench(SETTINGS[setting], ring, threads).set_up


def calibrate(setting: str, ring: int, setups: list[primitives.Cost]) -> dict:
  """The constants of one ring and setting; `setups` for 1 and for 2 threads."""
  bench, rng = Bench(SETTINGS[setting], ring), np.random.default_rng(0)
  numbers = lambda n: rng.uniform(0.1, 0.9, n).astype(np.float32)
  found = {}

  def fit(name, sizes, fn, owners=(SHARED,), less=lambda n: primitives.Cost(), *, features):
    costs = []
    for n in sizes:
      cost = bench.measure(fn, [numbers(n) for _ in owners], owners)
      costs.append(cost + less(n) * -1)
      _say(f"{setting}/{ring} {name} {n}", cost)
    found[name] = _fitted([features(n) for n in sizes], costs)

  protocols = primitives.Protocols(found)
  two = (SHARED, SHARED)
  fit("cut", SIZES, lambda x: x * 0.5, features=_LINEAR)
  cut = lambda n: protocols.each("cut", n)
  fit("compare", SIZES, lambda x, y: x > y, two, features=_LINEAR)
  compare = lambda n: protocols.each("compare", n)
  fit("choose", SIZES, lambda x, y: jnp.where(x > y, x, y), two, compare, features=_LINEAR)
  fit("count", SIZES, lambda x, y: (x > y).astype(jnp.int32), two, compare, features=_LINEAR)
  pairs = lambda n: (1, primitives.units(n), 0)
  fit("ciphertext pair", SIZES, lambda x, y: x * y, (SHARED, SERVER), cut, features=pairs)
  large = tuple(n for n in SIZES if n >= primitives.DIRECT)
  halves = lambda n: (1, primitives.units(n // 2) + primitives.units(n - n // 2), 0)
  fit("ciphertext triple", large, lambda x, y: x * y, two, cut, features=halves)
  found["set up"] = _fitted([(1, threads, 0) for threads in (1, 2)], setups)
  found["opening"] = {"bytes": [0, 4 * ring / 8, 0], "rounds": [1, 0, 0], "seconds": [1e-3, 2e-8, 0]}
  if ring == WIDE:
    found |= _matrices(bench, setting, protocols)
    made_of_many = {
      "reciprocal": lambda x: 1.0 / x,
      "inverse root": jax.lax.rsqrt,
      "erf": jax.lax.erf,
      "tanh": jnp.tanh,
    }
    for name, fn in made_of_many.items():
      fit(name, SMALL, fn, features=protocols.features_of_many)
    fit("quotient", SMALL, lambda x, y: x / y, two, features=protocols.features_of_many)
  return found


def _matrices(bench: Bench, setting: str, protocols: primitives.Protocols) -> dict:
  """What the parts of a matrix product cost."""
  rng, features, costs = np.random.default_rng(1), [], []
  for M, K, L in MATRICES:
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((M, K), (K, L))]
    cost = bench.measure(lambda x, w: x @ w, arrays, (SHARED, SERVER))
    _say(f"{setting} {M} × {K} × {L}", cost)
    parts = primitives.ciphertexts(M, K, L)
    features.append([getattr(parts, name) for name in primitives.MATRIX_PARTS])
    costs.append(cost + protocols.each("cut", M * L) * -1)
  found = _fitted(features, costs)
  return {
    name: {field: [0, found[field][i], 0] for field in ("bytes", "seconds")} | {"rounds": [0, 0, 0]}
    for i, name in enumerate(primitives.MATRIX_PARTS)
  }


def _say(what: str, cost: primitives.Cost) -> None:
  print(f"{what}: {cost.bytes / 2**20:.3f} MiB, {cost.rounds:.1f} rounds, {cost.seconds:.3f} s", flush=True)


def _alone(work, *args):
  """work(*args) in a process of its own: the engine takes its number of threads once."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(work, args)


_LINEAR = lambda n: (1, n, 0)


def _fitted(features: list, costs: list[primitives.Cost]) -> dict:
  """Non-negative rates of each feature, for the least relative error."""
  found = {}
  for field in dataclasses.fields(primitives.Cost):
    values = np.array([max(getattr(cost, field.name), 0.0) for cost in costs])
    weights = 1 / np.maximum(values, 1e-2 * max(values.max(), 1e-12))
    rates, _ = optimize.nnls(np.array(features, float) * weights[:, None], values * weights)
    found[field.name] = [float(f"{rate:.6g}") for rate in rates]
  return found


if __name__ == "__main__":

  def main() -> None:
    table = {}
    for setting, ring in RINGS:
      setups = [_alone(set_up_cost, setting, ring, threads) for threads in (1, 2)]
      table[f"{setting}/{ring}"] = _alone(calibrate, setting, ring, setups)
    table["machine"] = {
      "engine": engine.version(),
      "threads": THREADS,
      "cores": len(os.sched_getaffinity(0)),
      "processor": platform.processor() or platform.machine(),
      "date": time.strftime("%Y-%m-%d"),
    }
    primitives._TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(f"wrote {primitives._TABLE}", file=sys.stderr)

  cli.run(main)
