"""Which files are pages: the repository's, under their own paths, so that links between them hold; and the API."""

import pathlib
import posixpath
import re
import tomllib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# What others import, in the order of a reader.
API = (
  "entropy_attn", "attention", "entropy", "loss", "model", "reparam", "curriculum", "sharding", "config", "fields",
  "config_file", "errors", "counts", "run.pretrained", "study.runs", "private.price.predict", "private.price.function",
  "published",
)  # fmt: skip
GUIDES = ("docs/*.md", "entropy_attn/private/README.md", "launch/README.md")
RESULTS = ("docs/results.md", "docs/results/*.md", "benchmarks/*.md")
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md")
PICTURES = ("docs/**/*.png", "docs/**/*.svg", "benchmarks/**/*.png")


def on_config(config):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  config.repo_url, config.repo_name = project.get("urls", {}).get("Repository") or None, project["name"]
  results = _found(*RESULTS)
  config.nav = [
    {"Start": "README.md"},
    {"Guides": [page for page in _found(*GUIDES) if page not in results]},
    {"Results": results},
    {"API": [{_dotted(name): _page(name)} for name in API]},
    {"Project": _found(*PROJECT)},
  ]
  return config


def on_files(files, config):
  for file in [file for file in files if file.src_dir == config.docs_dir]:
    files.remove(file)
  for path in _found("README.md", *GUIDES, *RESULTS, *PROJECT, *PICTURES):
    files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
  for name in API:
    files.append(File.generated(config, _page(name), content=f"::: {_dotted(name)}\n"))
  return files


def on_page_content(html, page, config, files):
  """Links to what is no page, such as a source file, lead to the repository; while it has no address, nowhere."""
  known, folder = {file.dest_uri for file in files}, posixpath.dirname(page.file.dest_uri)

  def mended(link):
    path = posixpath.normpath(posixpath.join(folder, link[1].partition("#")[0]))
    if re.match(r"\w+:|#", link[1]) or path in known:
      return link[0]
    return f'<a href="{config.repo_url}/blob/main/{path}">{link[2]}</a>' if config.repo_url else link[2]

  return re.sub(r'<a href="([^"]*)">(.*?)</a>', mended, html, flags=re.DOTALL)


def _found(*patterns: str) -> list[str]:
  """Paths from the root, each once, in the order of the patterns."""
  found = [path.relative_to(ROOT).as_posix() for pattern in patterns for path in sorted(ROOT.glob(pattern))]
  return list(dict.fromkeys(found))


def _dotted(name: str) -> str:
  return name if name == "entropy_attn" else f"entropy_attn.{name}"


def _page(name: str) -> str:
  return f"api/{name}.md"
