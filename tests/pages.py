"""Commands, snippets and links of the project's Markdown pages."""

import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path(__file__).parents[1]
SHELL, PYTHON, SHOWN = ("", "sh"), ("python",), ("text", "bibtex")  # languages of fenced blocks; SHOWN is for the eye
STARTS = ("python", "make", "pip", "entropy_attn")  # first words of a command
PLACEHOLDER = re.compile(r"…|\b(COMMAND|NAME|TEXT|DIR|HOST|PORT|FOLDER|FILE|SCALE)\b")  # what a reader fills in


def blocks(page):
  """(language, text) of each fenced block, in order."""
  found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
  assert (ROOT / page).read_text().count("\n```") + (ROOT / page).read_text().startswith("```") == 2 * len(found)
  return found


def snippets(page):
  """The Python blocks."""
  return [text for language, text in blocks(page) if language in PYTHON]


def commands(page, inline=False):
  """Each command as a list of words, in order: of shell blocks and indented lines, and, if asked, of code in a text."""
  text = (ROOT / page).read_text()
  fenced = re.compile(r"^```(?P<language>\w*)\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL)
  indented = r"^    (?P<indented>(?:[A-Z_]+=\S+ )?(?:" + "|".join(STARTS) + r") (?:[^\n]*\\\n)*[^\n]*)$"
  inlined = r"`(?P<inline>(?:" + "|".join(STARTS) + r") [^`\n]+)`"
  found = []
  for match in re.finditer(f"{fenced.pattern}|{indented}|{inlined}", text, re.MULTILINE | re.DOTALL):
    if match["block"] is not None:
      assert match["language"] in (*SHELL, *PYTHON, *SHOWN), f"{page}: a block of {match['language']}"
      lines = match["block"].replace("\\\n", " ").splitlines() if match["language"] in SHELL else []
    elif match["indented"]:
      lines = [re.sub(r"\s{2,}\(.*", "", match["indented"].replace("\\\n", " "))]
    else:
      lines = [match["inline"]] if inline else []
    found += [words for line in lines if (words := shlex.split(line, comments=True))]
  return found


def made(target):
  """The commands that `make TARGET` would run, as it says itself; shell's own words left out."""
  done = subprocess.run(["make", "-n", *target], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, f"make {' '.join(target)}: {done.stderr}"
  lines = [line for line in done.stdout.splitlines() if re.match(r"\.venv[\w-]*/bin/python -m ", line)]
  return [shlex.split(line) for line in lines]


def module(words):
  """Of a command of ours, (its module without the package's name, its flags); None for any other."""
  while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
    words = words[1:]
  if re.fullmatch(r"(\S*/)?python3?", words[0]) and words[1:2] == ["-m"]:
    name, flags = words[2], words[3:]
  elif words[0] == "entropy_attn" and len(words) > 1:
    name, flags = f"entropy_attn.{words[1]}", words[2:]
  else:
    return None
  if name == "entropy_attn":
    return "__main__", flags
  return (name.removeprefix("entropy_attn."), flags) if name.startswith("entropy_attn.") else None


def links(page):
  """(file, anchor) of each link within the repository."""
  targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
  return [target.partition("#")[::2] for target in targets if not re.match(r"\w+:", target)]


def anchors(path):
  """Those of a page's headings, as forges make them."""
  headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
