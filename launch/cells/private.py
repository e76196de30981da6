# %% [markdown]
# # A language model on a text that it never sees
#
# Two processes on this machine: the **server** has the weights, the **client** has a prompt. They compute the next
# tokens together, by the two-party engine SecretFlow SPU: the server learns how long the prompt is and nothing else,
# the client learns the tokens and no weight. Here you train a small model, serve it, ask it privately, and compare with
# the clear.
#
# *Runtime → Run all*: about six minutes on two CPU cores.

# %%
STEPS = 300  # @param {type:"integer"}
LAYERS = 2  # @param {type:"integer"}
PROMPT = "    def __init__(self"  # @param {type:"string"}
TOKENS = 5  # @param {type:"integer"}
FOLDER = "runs/private"  # @param {type:"string"}

# %% [markdown]
# ## The engine needs Python 3.11
#
# Its wheels are for CPython 3.11, on Linux x86-64 and on Apple silicon, and Colab's Python is a later one. So the two
# parties get an environment of their own, made by `uv`, which brings the interpreter; this kernel only starts them.
# Where no such environment can be made (another machine, no network) the cells that need it are left out, and the price
# is predicted in place of measured.

# %%
import platform

PARTY = None  # the Python of the two parties
if importlib.util.find_spec("spu"):
  PARTY = sys.executable
  print("the engine is installed here")
elif (platform.system(), platform.machine()) in (("Linux", "x86_64"), ("Darwin", "arm64")):
  home = pathlib.Path.cwd() / "python311"
  pins = [
    line.split("#")[0].split(";")[0].strip() for line in (CODE / "requirements-private.txt").read_text().splitlines()
  ]
  if not (home / "done").exists():
    print("making an environment with CPython 3.11: two minutes …", flush=True)
    uv = [sys.executable, "-m", "uv"]
    install = [*uv, "pip", "install", "--quiet", f"--python={home / 'bin' / 'python'}"]
    steps = (
      [sys.executable, "-m", "pip", "install", "--quiet", "uv"],
      [*uv, "venv", "--quiet", "--clear", "--python=3.11", str(home)],
      [*install, "--requirements", str(CODE / "requirements.txt")],
      [*install, "--no-deps", *filter(None, pins)],  # its own pins of JAX and NumPy would hold back ours
    )
    for step in steps:
      done = subprocess.run(step, capture_output=True, text=True)
      if done.returncode:
        print(done.stderr[-1000:])
        break
    else:
      (home / "done").touch()
  PARTY = home / "bin" / "python" if (home / "done").exists() else None
if PARTY is None:
  print(
    "no engine here: it needs CPython 3.11 on Linux (x86-64) or Apple silicon. The cells of two parties are left out."
  )

# %% [markdown]
# ## A model worth keeping
#
# EReg(SM(t)+ScFuFFN), small: attention is its only nonlinearity. A temperature a head folds into the weights and costs
# nothing privately.

# %%
small = (
  f"--config.model.num_layers={LAYERS} --config.model.d_model=64 --config.model.context_length=64 "
  "--config.model.temperature=per_head --config.optimizer.learning_rate=3e-3 --config.eval.every=0 "
  f"--config.eval.batches=20 --config.train.steps={STEPS}"
)
run(f"main --config=configs/quickstart.py --workdir={FOLDER} --noreport {small}")

# %% [markdown]
# ## In the clear
#
# The likeliest tokens after the prompt, from somebody who has both the weights and the prompt.

# %%
import json

ask = f"--prompt={shlex.quote(PROMPT)} --tokens={TOKENS}"
run(f"generate --checkpoint={FOLDER} {ask} --temperature=0 --json={FOLDER}/clear.json")

# %% [markdown]
# ## The server
#
# It starts in the background, and loads the weights. What it says goes to `server.log`.

# %%
import time

LOG = pathlib.Path(FOLDER, "server.log")
SERVER, PORT = None, None
if PARTY:
  serve = ["-m", "entropy_attn.private.serve", f"--checkpoint={FOLDER}", f"--material={FOLDER}/served", "--port=0"]
  SERVER = subprocess.Popen([PARTY, *serve], stdout=LOG.open("w"), stderr=subprocess.STDOUT)
  while SERVER.poll() is None and "serving on" not in LOG.read_text():
    time.sleep(0.2)
  print(LOG.read_text())
  assert SERVER.poll() is None, "the server ended: the last line above says why"
  PORT = LOG.read_text().split("serving on 127.0.0.1:")[1].split()[0]

# %% [markdown]
# ## Before there is a prompt
#
# Nearly all of the work is in products, and these are made ahead, of random numbers in the place of secrets. Both sides
# keep their half, encrypted, and use it once.

# %%
if PARTY:
  n = len(json.loads(pathlib.Path(FOLDER, "clear.json").read_text())["prompt_ids"])
  line = f"--server=127.0.0.1:{PORT} --material={FOLDER}/asked"
  run(f"private.prepare {line} --length={n} --tokens={TOKENS} --json={FOLDER}/prepared.json", python=PARTY)

# %% [markdown]
# ## The prompt, privately
#
# The client's bar runs over the text as it comes; the next cell has it whole.

# %%
import collections
import re

if PARTY:
  run(f"private.generate {line} {ask} --json={FOLDER}/private.json", python=PARTY)
  SERVER.terminate()
  SERVER.wait()
  print("\nAll that the server saw of both, and how often:\n")
  for event, count in collections.Counter(re.sub(":[0-9]+", "", text) for text in LOG.read_text().splitlines()).items():
    print(f"{count:4} × {event}")

# %% [markdown]
# ## The same text?
#
# Fixed point rounds; the likeliest token is the same unless two were nearly equally likely.

# %%
import matplotlib.pyplot as plt

if PARTY:
  read = lambda name: json.loads(pathlib.Path(FOLDER, f"{name}.json").read_text())
  clear, private, made = read("clear"), read("private"), read("prepared")["made"]
  print("in the clear:", repr(clear["text"]))
  print("privately:   ", repr(private["text"]))
  print("the same text" if clear["text"] == private["text"] else "ANOTHER text")
  spent = {"before the prompt": made, "prompt": private["spent"][:1], "later tokens": private["spent"][1:]}
  figure, axes = plt.subplots(1, 3, figsize=(11, 1.9), layout="constrained", sharey=True)
  for one, (key, unit) in zip(axes, {"bytes": 1e6, "rounds": 1, "seconds": 1}.items(), strict=True):
    totals = [sum(part[key] for part in parts) / unit for parts in spent.values()]
    bars = one.barh(list(spent), totals, color="#1f5f8f")
    one.bar_label(bars, fmt="{:,.1f}" if key != "rounds" else "{:,.0f}", padding=3)
    one.set(title="MB, both ways" if key == "bytes" else key)
    one.margins(x=0.2)
    one.spines[["top", "right"]].set_visible(False)
  axes[0].invert_yaxis()
  plt.show()

# %% [markdown]
# ## The price of a larger one
#
# Predicted from a config, on any machine: GPT-2 small as the paper leaves it, with 128 tokens, beside the same with
# LayerNorm and GELU.

# %%
run("private.cost --config=configs/codeparrot_ln_gelu.py --compare=configs/codeparrot_scfuffn.py")

# %% [markdown]
# ## Next
#
# Two machines, TLS, quotas, and what each party learns: `entropy_attn/private/README.md`.
