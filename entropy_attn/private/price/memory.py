"""How much memory each party of an inference takes at its peak.

The server encodes a private matrix for a product as many plaintexts, all at once; that of the largest product is what
its peak follows. What both hold besides, and how the client's grows, is fitted to the recorded profiles of two threads
(benchmarks/private), and tried on those alone: 2 to 13 GB at the server, within 5 % of each; 1.2 to 3.5 GB at the
client, within 5 %, and 20 % in the stock settings. What comparing very many numbers takes is not in it: with ReLU at
GPT-2 small's width (393,216 numbers at once) the client took 4.4 GiB, not 3.2.
"""

from entropy_attn.private.program.types import CLIENT, SERVER

# Bytes without any product, with the engine's cheap settings (two rings) and with its stock ones; and for each byte of
# the largest encoded matrix.
_CHEAP, _STOCK = {SERVER: 2.0e9, CLIENT: 1.93e9}, {SERVER: 1.7e9, CLIENT: 1.28e9}
_EACH = {SERVER: 1.42, CLIENT: 0.19}


def peak(encoded: float, *, cheap: bool) -> dict[str, float]:
  """Bytes of each party's peak.

  Args:
    encoded: of the largest product with a private matrix, as `count.Counted` has it.
    cheap: whether the engine has its cheap settings.
  """
  return {role: (_CHEAP if cheap else _STOCK)[role] + each * encoded for role, each in _EACH.items()}
