"""What the engine's protocols send: bytes, rounds and seconds of each, as functions of sizes and measured constants.

Homomorphic products are counted in ciphertexts exactly as the engine cuts them. Oblivious transfers cost so much an
element; now and then the engine extends its stock of them, which their rates include on average. The constants are
measured by `calibrate`, for each ring and setting.

Letters: M × K times K × L matrices.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
import pathlib

import numpy as np

from entropy_attn.private.program.packing import SLOTS, ciphertexts

# A second, of integers in the clear on two cores: with a matrix of the server's (`parties.integers`), and of what both
# opened under masks, three times (`parties.material`).
MULTIPLICATIONS = {"matrix": 3e9, "secret": 2e8}
PLAINTEXT_BYTES = 196_608  # of one that is to be multiplied: SLOTS coefficients by three primes
DIRECT = 2 * SLOTS  # from so many elements a product is made at once, not of stored random triples
MATRIX_PARTS = ("queries", "answers", "pieces", "rotations")
TABLE = pathlib.Path(__file__).with_name("protocols.json")  # what `calibrate` writes


@dataclasses.dataclass(frozen=True)
class Cost:
  """Bytes both ways, rounds, and seconds of computation."""

  bytes: float = 0.0
  rounds: float = 0.0
  seconds: float = 0.0

  def __add__(self, other: "Cost") -> "Cost":
    return Cost(self.bytes + other.bytes, self.rounds + other.rounds, self.seconds + other.seconds)

  def __mul__(self, times: float) -> "Cost":
    return Cost(self.bytes * times, self.rounds * times, self.seconds * times)


@functools.cache
def calibration() -> Mapping:
  """The measured constants, by 'setting/ring', and the machine of the seconds."""
  return json.loads(TABLE.read_text())


def of_setting(setting: str) -> dict[int, "Protocols"]:
  """The protocols of a setting of the engine, by the bits of their ring.

  Args:
    setting: cheap; verified: the same with the approximate products of the narrow ring (`spec.Settings`); or stock.
  """
  names = [name for name in calibration() if name.startswith(f"{setting}/")]
  found = {int(name.split("/")[1]): Protocols(calibration()[name]) for name in names}
  return of_setting("cheap") | found if setting == "verified" else found


class Protocols:
  """What the protocols of one ring and setting cost, as functions of sizes.

  Args:
    constants: of `calibration`, for the ring and setting.
  """

  def __init__(self, constants: Mapping[str, Mapping[str, list[float]]]):
    self.constants = constants

  def each(self, name: str, n: float) -> Cost:
    """A protocol on n elements: so much a call, an element, and a started ciphertext."""
    return self.rated(name, (1, n, units(n)))

  def made_of_many(self, name: str, n: float) -> Cost:
    """A protocol of many others on n elements: so much a call, an element, and a MB of a product of n numbers."""
    return self.rated(name, self.features_of_many(n))

  def features_of_many(self, n: float) -> tuple[float, float, float]:
    """The three sizes that the constants of `made_of_many` are multiplied with."""
    return 1, n, self.product(n).bytes / 1e6

  def rated(self, name: str, features: tuple[float, float, float]) -> Cost:
    """A protocol's constants times the sizes that they are of."""
    rates = self.constants[name]
    return Cost(*(float(np.dot(rates[field.name], features)) for field in dataclasses.fields(Cost)))

  def square(self, n: int) -> Cost:
    """x² of secret x, not cut."""
    return self.each("ciphertext pair", units(n) if n <= SLOTS else 2 * units(-(-n // 2)))

  def product_with_private(self, n: int) -> Cost:
    """x y of secret x and a y that one party knows, not cut."""
    return self.each("ciphertext pair", units(n))

  def product(self, n: int) -> Cost:
    """x y of secret x and y, not cut; few ones by random triples, made in stock by whole ciphertexts."""
    if n >= DIRECT:
      return self.each("ciphertext triple", units(n // 2) + units(n - n // 2))
    return self.each("opening", n) + self.each("ciphertext pair", 1) * (2 * n / SLOTS)

  def matrix_product(self, M: int, K: int, L: int, *, directions: int, cut: bool) -> Cost:
    """A secret matrix times a private (directions=1) or a secret one (2).

    The client opens a cut. Where it encrypted, it has waited for the answer; else it gave the answer itself, and the
    cut costs no round of its own.
    """
    parts = ciphertexts(M, K, L)
    each = Cost()
    for name in MATRIX_PARTS:
      each += self.each(name, getattr(parts, name))
    cost = Cost(each.bytes * directions, 1.0, each.seconds * directions)
    if cut:
      of_cut = self.each("cut", M * L)
      cost += Cost(of_cut.bytes, of_cut.rounds * parts.client_encrypts, of_cut.seconds)
    return cost


def set_up_sizes(ring: int, threads: int) -> tuple[float, float, float]:
  """What the constants of making keys are multiplied with.

  Each thread has keys of its own for the narrow ring; for the wide one no more than two have, and the rest cost little.
  """
  return (1, min(threads, 2), threads) if ring == 64 else (1, threads, 0)


def units(n: float) -> int:
  """How many ciphertexts hold n numbers."""
  return math.ceil(n / SLOTS)
