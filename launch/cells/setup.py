# %%
# @title Set up: code and packages, where they are not there yet
REPOSITORY = "@REPOSITORY@"  # @param {type:"string"}
import base64
import glob
import gzip
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import warnings
import zlib

from IPython.display import HTML, display

os.chdir(".." if pathlib.Path("..", "entropy_attn", "model.py").exists() else ".")  # opened from launch/ in a clone
CODE = pathlib.Path.cwd()
if not (CODE / "entropy_attn" / "model.py").exists():
  found = importlib.util.find_spec("entropy_attn")
  CODE = pathlib.Path(found.origin).parents[1] if found else CODE / "code"
if not CODE.exists():
  assert REPOSITORY, "REPOSITORY is empty: give the address of the repository, as for git clone"
  subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, CODE], check=True)
sys.path.insert(0, str(CODE))
os.environ["PYTHONPATH"] = str(CODE)  # of the commands below
if not pathlib.Path("configs").exists():
  pathlib.Path("configs").symlink_to(CODE / "configs")

if not all(importlib.util.find_spec(name) for name in ("tensorboardX", "vl_convert")):  # no runtime brings these two
  print("installing packages: one to three minutes …", flush=True)
  files = [CODE / "requirements.txt", CODE / "requirements-report.txt"]
  pins = [line.split("#")[0].strip() for file in files for line in file.read_text().splitlines()]
  kind = "jax[cuda12]==" if shutil.which("nvidia-smi") else "jax==" if not glob.glob("/dev/vfio/*") else "jax[tpu]=="
  loaded = ("numpy", "matplotlib")  # the kernel has them already, and must keep them
  wanted = [pin.replace("jax==", kind) for pin in pins if pin and pin.split("==")[0] not in loaded]
  subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
  importlib.invalidate_caches()

import jax

get_ipython().run_line_magic("matplotlib", "inline")
# JAX warns of a fork, but the commands are other programs at once; tqdm of a widget that no runtime needs.
warnings.filterwarnings("ignore", message="os.fork|IProgress")
jax.config.update("jax_platforms", "cpu")  # of this kernel, which looks and draws: the accelerator is for the commands


def run(command, python=sys.executable):
  """`python -m entropy_attn.COMMAND`, as in a terminal; one that fails stops the notebook."""
  print(f"$ python -m entropy_attn.{command}\n", flush=True)
  get_ipython().system(f"{shlex.quote(str(python))} -m entropy_attn.{command}")
  if _exit_code:
    raise RuntimeError("the last line above says why")


def show(path, height=900):
  """An HTML file within the notebook, packed: the page that it holds is one megabyte of program and data."""
  packed = base64.b64encode(gzip.compress(pathlib.Path(path).read_bytes())).decode()
  frame = f"frame-{zlib.crc32(packed.encode())}"
  display(
    HTML(f"""<iframe id="{frame}" title="{path}" width="100%" height="{height}" frameborder="0"></iframe>
<script>fetch("data:application/gzip;base64,{packed}")
.then(packed => new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text())
.then(page => {{ document.getElementById("{frame}").srcdoc = page }})</script>""")
  )


print("ready, on", "a GPU" if shutil.which("nvidia-smi") else "a TPU" if glob.glob("/dev/vfio/*") else "the CPU")
