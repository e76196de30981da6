"""Measures the engine's protocols: the constants of `price.protocols`.

Each is run in programs of its own at several sizes, over a connection within this process. Bytes and rounds depend on
the engine's version and settings alone; seconds on this machine.
"""

from collections.abc import Callable, Sequence
import dataclasses
import multiprocessing
import os
import platform
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from entropy_attn.private.parties import engine
from entropy_attn.private.parties.party import Party
from entropy_attn.private.parties.wire import Connection, Counts
from entropy_attn.private.price import protocols as protocols_lib
from entropy_attn.private.program import build, ops
from entropy_attn.private.program.operations import SET_UP
from entropy_attn.private.program.spec import Settings
from entropy_attn.private.program.types import CLIENT, NARROW, SERVER, SHARED, WIDE, Function, Step, Variable

THREADS = 2
SETTINGS = {
  "cheap": Settings(1, False, "EMP_Ferret"),
  "verified": Settings(1, True, "EMP_Ferret"),
  "stock": Settings(8, False, "YACL_Ferret"),
}
RINGS = (("cheap", WIDE), ("cheap", NARROW), ("verified", NARROW), ("stock", WIDE))
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
SET_UPS = (1, 2, 8)  # threads of each party


def constants() -> dict:
  """All constants, as `protocols.calibration` reads them: by 'setting/ring', and of the machine that measured them."""
  table = {}
  for setting, ring in RINGS:
    setups = [_alone(set_up_cost, setting, ring, threads) for threads in SET_UPS]
    table[f"{setting}/{ring}"] = _alone(calibrate, setting, ring, setups)
  table["machine"] = {
    "engine": engine.version(),
    "threads": THREADS,
    "cores": len(os.sched_getaffinity(0)),
    "processor": platform.processor() or platform.machine(),
    "date": time.strftime("%Y-%m-%d"),
  }
  return table


class Bench:
  """Two parties of one process, to measure functions with.

  Args:
    ring: bits of the ring that is measured.
    threads: of each party.

  Attributes:
    set_up: what making the engine's keys cost.
  """

  def __init__(self, settings: Settings, ring: int, threads: int = THREADS):
    engine.core()
    self._ring = ring
    self._connections = [Connection(sock) for sock in socket.socketpair()]
    self._parties: list = [None, None]

    def start(i, role):
      self._parties[i] = Party(self._connections[i], role, settings, threads)

    self._both(start)
    (step,) = build.set_up(threads, [ring]).steps
    operations = ops.Engine(one_square=settings.exp_iterations == 1, diagonal=False)
    ones = np.ones(max(2048 * threads, SET_UP), np.float32)
    self.set_up = self.measure(lambda x: step(operations, x), [ones], (SHARED,), first=True)

  def measure(
    self,
    fn: Callable,
    arrays: Sequence[np.ndarray],
    owners: Sequence[str],
    *,
    repeats: int = REPEATS,
    first: bool = False,
  ) -> protocols_lib.Cost:
    """What a function of arrays costs: its mean bytes and rounds, and its least seconds.

    Args:
      owners: of each array: SERVER, CLIENT or SHARED.
      repeats: runs after one that does not count.
      first: whether the first run alone counts.
    """
    visibility = ["PRIVATE" if owner in engine.RANKS else "SECRET" for owner in owners]
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    code = engine.compile_function(fn, args, visibility)
    names = tuple(f"x{i}" for i in range(len(arrays)))
    step = Step(None, "measured", Function(fn), names, ("y",), self._ring)
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
    return protocols_lib.Cost(
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


def set_up_cost(setting: str, ring: int, threads: int) -> protocols_lib.Cost:
  """What it costs to make the engine's keys."""
  return Bench(SETTINGS[setting], ring, threads).set_up


def calibrate(setting: str, ring: int, setups: list[protocols_lib.Cost]) -> dict:
  """The constants of one ring and setting.

  Args:
    setups: what `set_up_cost` gave for SET_UPS threads.
  """
  bench, rng = Bench(SETTINGS[setting], ring), np.random.default_rng(0)
  linear = lambda n: (1, n, 0)
  numbers = lambda n: rng.uniform(0.1, 0.9, n).astype(np.float32)
  found = {}

  def fit(name, sizes, fn, owners=(SHARED,), less=lambda n: protocols_lib.Cost(), *, features):
    costs = []
    for n in sizes:
      cost = bench.measure(fn, [numbers(n) for _ in owners], owners)
      costs.append(cost + less(n) * -1)
      _say(f"{setting}/{ring} {name} {n}", cost)
    found[name] = _fitted([features(n) for n in sizes], costs)

  protocols = protocols_lib.Protocols(found)
  two = (SHARED, SHARED)
  fit("cut", SIZES, lambda x: x * 0.5, features=linear)
  cut = lambda n: protocols.each("cut", n)
  fit("compare", SIZES, lambda x, y: x > y, two, features=linear)
  compare = lambda n: protocols.each("compare", n)
  fit("equal", SIZES, lambda x, y: x == y, two, features=linear)
  fit("choose", SIZES, lambda x, y: jnp.where(x > y, x, y), two, compare, features=linear)
  fit("count", SIZES, lambda x, y: (x > y).astype(jnp.int32), two, compare, features=linear)
  pairs = lambda n: (1, protocols_lib.units(n), 0)
  fit("ciphertext pair", SIZES, lambda x, y: x * y, (SHARED, SERVER), cut, features=pairs)
  large = tuple(n for n in SIZES if n >= protocols_lib.DIRECT)
  halves = lambda n: (1, protocols_lib.units(n // 2) + protocols_lib.units(n - n // 2), 0)
  fit("ciphertext triple", large, lambda x, y: x * y, two, cut, features=halves)
  found["set up"] = _fitted([protocols_lib.set_up_sizes(ring, threads) for threads in SET_UPS], setups)
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


def _matrices(bench: Bench, setting: str, protocols: protocols_lib.Protocols) -> dict:
  """What the parts of a matrix product cost."""
  rng, features, costs = np.random.default_rng(1), [], []
  for M, K, L in MATRICES:
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((M, K), (K, L))]
    cost = bench.measure(lambda x, w: x @ w, arrays, (SHARED, SERVER))
    _say(f"{setting} {M} × {K} × {L}", cost)
    parts = protocols_lib.ciphertexts(M, K, L)
    features.append([getattr(parts, name) for name in protocols_lib.MATRIX_PARTS])
    costs.append(cost + protocols.each("cut", M * L) * -1)
  found = _fitted(features, costs)
  return {
    name: {field: [0, found[field][i], 0] for field in ("bytes", "seconds")} | {"rounds": [0, 0, 0]}
    for i, name in enumerate(protocols_lib.MATRIX_PARTS)
  }


def _say(what: str, cost: protocols_lib.Cost) -> None:
  print(f"{what}: {cost.bytes / 2**20:.3f} MiB, {cost.rounds:.1f} rounds, {cost.seconds:.3f} s", flush=True)


def _alone(work, *args):
  """work(*args) in a process of its own: the engine takes its number of threads once."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(work, args)


def _fitted(features: list, costs: list[protocols_lib.Cost]) -> dict:
  """Non-negative rates of each feature, for the least relative error."""
  found = {}
  for field in dataclasses.fields(protocols_lib.Cost):
    values = np.array([max(getattr(cost, field.name), 0.0) for cost in costs])
    weights = 1 / np.maximum(values, 1e-2 * max(values.max(), 1e-12))
    rates, _ = optimize.nnls(np.array(features, float) * weights[:, None], values * weights)
    found[field.name] = [float(f"{rate:.6g}") for rate in rates]
  return found
