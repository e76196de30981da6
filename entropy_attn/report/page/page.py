"""Renders the report: template, style, program, Vega and data in one file that asks for nothing."""

from collections.abc import Mapping
import datetime
import pathlib
import string

from entropy_attn import paths
from entropy_attn.report import figures, style, tables
from entropy_attn.report.page import charts, extra, parts, price
from entropy_attn.report.page import data as data_lib

NAME = "report.html"
_SCRIPTS = ("heads.js", "page.js", "side.js")
_KINDS = ("number", "", "number wide", "wide")  # of a table's columns, as the style sheet knows them
_MOST = 24  # runs in a figure
_ROWS = 12  # of the table before it scrolls


def write(workdir: pathlib.Path, out: pathlib.Path | None = None) -> pathlib.Path:
  """Writes the report of a run's or a study's folder; returns its path.

  Args:
    out: the file; None: report.html in that folder.

  Raises:
    UserError: as `render`, or where it cannot be written.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / NAME if out is None else out
  paths.write_text(path, render(workdir), "--out")
  return path


def render(workdir: pathlib.Path) -> str:
  """The report of a run's or a study's folder as HTML.

  Raises:
    UserError: as `data.load`, or without the packages of requirements-report.txt.
  """
  return render_both(workdir)[0]


def render_both(workdir: pathlib.Path) -> tuple[str, str]:
  """The report as a file, and as `watch` serves it: that one asks its server for news, and nobody else for anything."""
  extra.check_installed()
  data = data_lib.load(workdir)
  first = data["runs"][0]
  vega, script = charts.bundle(), parts.source(*_SCRIPTS)
  template = string.Template(parts.source("template.html"))
  fields = {
    "title": parts.text(data["title"]),
    "colors": parts.variables(),
    "style": parts.source("style.css"),
    "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    "name": parts.text(first["name"]),
    "architecture": parts.text(first["architecture"]),
    "verdict": "".join(parts.fact(*of) for of in first["verdict"]),
    "divergence": parts.text((first["divergence"] or {}).get("text", "")),
    "hide_divergence": "" if first["divergence"] else "hidden",
    "figures": "".join(parts.picture(*of) for of in _figures(pathlib.Path(workdir), data).items()),
    "table": _table(data),
    "left_out": parts.text("Left out: " + "; ".join(data["left_out"])) if data["left_out"] else "",
    "data": _json(data),
    "vega": vega,
    "script": script,
  }
  forms = (("no", "none"), ("yes", "self"))
  file, served = (template.substitute(fields, served=s, policy=parts.policy((vega, script), whom)) for s, whom in forms)
  return file, served


def _json(data: Mapping) -> str:
  """What the page's program reads."""
  content = {name: value for name, value in data.items() if name not in ("table", "left_out", "last")} | {
    "specs": charts.specs(),
    "themes": charts.themes(),
    "palette": style.PAGE,
    "bins": style.BIN_NAMES,
    "binColors": style.hex_colors(style.BIN_COLORS),
    "lines": price.lines(),
    **parts.colors(),
  }
  return parts.data(content)


def _table(data: Mapping) -> str:
  """A study's runs as a table; those that are shown have a button."""
  if data["kind"] != "study":
    return ""
  rows = data["table"] or [{"name": run["name"], "architecture": run["architecture"]} for run in data["runs"]]
  place = {run["name"]: i for i, run in enumerate(data["runs"])}
  lines = []
  for row in rows:
    names = [name for name in place if name == row["name"] or name.startswith(f"{row['name']}, ")]
    of_seeds = {"status": None, "reason": None} if len(names) > 1 else {}  # each has its own
    lines += [_row(row | of_seeds, name, place[name], data["runs"][place[name]]) for name in names] or [_row(row)]
  titles = ("PPL", "heads by quarter of Max", "private answer", "status")
  columns = [("", "run"), *zip(_KINDS, titles, strict=True)]
  head = "".join(f'<th scope="col" class="{kind}">{title}</th>' for kind, title in columns)
  table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
  if len(lines) > _ROWS:  # what they are for, the heads, is not to be pushed off the screen
    table = f'<div class="rows" role="region" aria-label="All runs" tabindex="0">{table}</div>'
  return f'<section aria-labelledby="runs-title"><h2 id="runs-title">Runs</h2>{table}</section>'


def _row(row: Mapping, name: str | None = None, index: int | None = None, run: Mapping | None = None) -> str:
  """A line of the table: of a run that is shown, or of one that cannot be."""
  title = parts.text(row["name"]) if run is None else f'<button type="button">{parts.text(name)}</button>'
  spread = ""
  if row.get("perplexity_sd") is not None and row.get("perplexity") is not None and index is not None:
    spread = f"<small>{row['perplexity']:.2f} ± {row['perplexity_sd']:.2f} over the seeds</small>"
  perplexity, shares, private, status, reason = (tables.NONE,) * 3 + ("", "")
  if run is not None:
    perplexity, shares, private = run["verdict"][0][1], run["shares"], run["verdict"][3][1]
    status, reason = run["status"], (run["divergence"] or {}).get("text", "")
  status, reason = row.get("status") or status, row.get("reason") or reason
  reason = f"<small>{parts.text(reason)}</small>" if reason else ""
  texts = (parts.text(perplexity) + spread, parts.text(shares), parts.text(private), parts.text(status) + reason)
  cells = "".join(f'<td class="{kind}">{text}</td>' for kind, text in zip(_KINDS, texts, strict=True))
  shown = "" if index is None else f' data-run="{index}"'
  return f'<tr{shown}><th scope="row">{title}<small>{parts.text(row.get("architecture", ""))}</small></th>{cells}</tr>'


def _figures(workdir: pathlib.Path, data: Mapping) -> dict:
  """The matplotlib figures that stand in where no script runs, by what they show."""
  if data["kind"] == "run":
    drawn = figures.run_figures(workdir)
    return {"Entropy of every head": drawn["entropy_heatmap"], "Entropy of the layers": drawn["entropy_layers"]}
  drawn = figures.comparison(data["last"][:_MOST], data["runs"][0]["max"])
  return {"Entropy of every head of the runs, and their shares": drawn}
