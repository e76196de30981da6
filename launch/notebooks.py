"""Builds the Colab notebooks of this folder from the readable cells in launch/cells/, and executes them.

    python -m launch.notebooks                    # builds all; a cell that did not change keeps its outputs
    python -m launch.notebooks --execute collapse # and runs this one from clean, in an empty folder

A source is a Python file of cells: `# %%` begins one of code, `# %% [markdown]` one of text, its lines commented. The
first code cell of each notebook is launch/cells/setup.py, with the repository's address of pyproject.toml.
"""

import argparse
import pathlib
import re
import tempfile
import tomllib

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("quickstart", "experiment", "collapse", "private", "inspect")
_CELL = re.compile(r"^# %%(?: \[(markdown)\])?\n", re.MULTILINE)
_CONTROL = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])")
_METADATA = {
  "accelerator": "GPU",
  "colab": {"provenance": []},
  "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
  "language_info": {"name": "python"},
}


def path_of(name: str) -> pathlib.Path:
  """The notebook of a source."""
  return ROOT / "launch" / f"colab_{name}.ipynb"


def build(name: str) -> nbformat.NotebookNode:
  """A notebook without outputs: the source's title, the shared set-up, and the rest of the source."""
  title, *rest = _cells(name)
  cells = [title, *_cells("setup"), *rest]
  notebook = nbformat.v4.new_notebook(metadata=_METADATA, cells=cells, nbformat_minor=5)
  for number, cell in enumerate(cells):
    cell.id = f"{name}-{number:02d}"
  nbformat.validate(notebook)
  return notebook


def repository() -> str:
  """The address that an empty runtime installs from: pyproject.toml's, or "" where it names none."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  return project.get("urls", {}).get("Repository", "")


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path, timeout: float | None = None) -> None:
  """Runs all cells in a fresh kernel in a folder; their outputs are then those of a terminal that was watched.

  Raises:
    nbclient.exceptions.CellExecutionError: for a cell that fails.
  """
  resources = {"metadata": {"path": str(folder)}}
  client = nbclient.NotebookClient(
    notebook, timeout=timeout, kernel_name="python3", resources=resources, record_timing=False
  )
  client.execute()
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = _joined(cell.outputs)
  notebook.metadata.language_info = _METADATA["language_info"]  # without the version of who ran it


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
  """Outputs with neighbouring parts of one stream as one, as `seen`."""
  joined = []
  for output in outputs:
    if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
      joined[-1].text += output.text
    else:
      joined.append(output)
  for output in joined:
    if output.output_type == "stream":
      output.text = seen(output.text)
  return joined


def seen(text: str) -> str:
  """What a terminal shows in the end of a text: bars that were overwritten, and colours, are gone."""
  lines, row, column = [""], 0, 0
  for part in _CONTROL.split(text):
    if part == "\n":
      row, column = row + 1, 0
      lines += [""] * (row == len(lines))
    elif part == "\r":
      column = 0
    elif part == "\x1b[A":
      row = max(row - 1, 0)
    elif part and not part.startswith("\x1b"):
      lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
      column += len(part)
  return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines))


def with_outputs(notebook: nbformat.NotebookNode, stored: nbformat.NotebookNode) -> nbformat.NotebookNode:
  """The notebook with the outputs of those stored cells whose source is the same."""
  of_source = {cell.source: cell for cell in stored.cells if cell.cell_type == "code"}
  for cell in notebook.cells:
    if cell.cell_type == "code" and cell.source in of_source:
      old = of_source[cell.source]
      cell.outputs, cell.execution_count = old.outputs, old.execution_count
  return notebook


def _cells(name: str) -> list[nbformat.NotebookNode]:
  """The cells of a source."""
  text = (ROOT / "launch" / "cells" / f"{name}.py").read_text().replace("@REPOSITORY@", repository())
  _, *parts = _CELL.split(text)
  return [_cell(kind, source.strip()) for kind, source in zip(parts[::2], parts[1::2], strict=True)]


def _cell(kind: str | None, source: str) -> nbformat.NotebookNode:
  if kind == "markdown":
    return nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", source, flags=re.MULTILINE))
  fields = "# @param" in source
  metadata = {"cellView": "form"} if source.startswith("# @title") else {}
  return nbformat.v4.new_code_cell(source, metadata=metadata | ({"tags": ["parameters"]} if fields else {}))


def main() -> None:
  """Builds all notebooks, and executes those that are named."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--execute", nargs="*", default=[], choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
  chosen = parser.parse_args().execute
  for name in NAMES:
    notebook, path = build(name), path_of(name)
    if name in chosen:
      with tempfile.TemporaryDirectory() as folder:
        execute(notebook, pathlib.Path(folder))
    elif path.exists():
      notebook = with_outputs(notebook, nbformat.read(path, as_version=4))
    nbformat.write(notebook, path)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
  main()
