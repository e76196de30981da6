"""Preparing and pricing need no engine, and nothing of those who run it."""

import subprocess
import sys

from command_line import ROOT, environment
from waiting import PATIENCE

PROGRAM = """
import importlib, pkgutil, sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] == "spu":
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from entropy_attn.private import price, program
found = [module.name for package in (program, price)
         for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
assert len(found) > 12, found
for name in found:
  importlib.import_module(name)
from entropy_attn import config
from entropy_attn.private.price import predict
from entropy_attn.private.program.spec import transforms_for
c = config.codeparrot("quick")
assert predict.of_config(c, transforms_for(c.model), 6)["total_bytes"] > 0
wrong = [name for name in sys.modules if name.startswith(("entropy_attn.private.parties", "spu"))]
assert not wrong, wrong
"""


def test_programs_and_prices_import_and_work_where_no_engine_is():
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE
  )
  assert done.returncode == 0, done.stderr
