"""The table of a study in each form: for the terminal, in Markdown, CSV and LaTeX, and with its figures on the disk."""

from collections.abc import Mapping
import pathlib

from entropy_attn import files
from entropy_attn.errors import UserError, check_choice, shorten
from entropy_attn.progress import say
from entropy_attn.report import figures, tables
from entropy_attn.run import folder
from entropy_attn.study.runs import Study

_QUALITY = (
  "run", "architecture", "PPL", "published", "change", "bits/byte", "heads by quarter of Max", "published heads",
  "non-finite", "status", "time",
)  # fmt: skip
_QUALITY_LEFT = (0, 1, 9)
_COST = (
  "run", "parameters", "FFN FLOPs", "attention", "GB", "online", "LAN", "online", "WAN", "online", "published GB",
  "min", "nonlinear operations",
)  # fmt: skip
_COST_LEFT = (0, 12)
_CSV = (
  "name", "architecture", "config", "seeds", "status", "perplexity", "perplexity_sd", "change", "bits_per_byte",
  "head_shares", "nonfinite_rows", "parameters", "ffn_flops", "attention_flops", "nonlinear_ops", "gamma", "step",
  "seconds", "reason", "private_reason",
)  # fmt: skip
_CSV_PRIVATE = (
  "bytes", "online_bytes", "rounds", "online_rounds", "lan_seconds", "lan_online_seconds", "wan_seconds",
  "wan_online_seconds",
)  # fmt: skip
_CSV_PUBLISHED = ("perplexity", "diverged", "head_shares", "top_share", "gigabytes", "minutes")
_COMPARED = 12  # runs that comparison.png can show


def check(study: Study) -> None:
  """Raises UserError for a figure that there is not."""
  if study.figures:
    from entropy_attn.report import paper  # here: studies without such figures do not need it

    for name in study.figures:
      check_choice(f"study {study.name}: figures", name, paper.NAMES)


def text(result: Mapping) -> str:
  """The result of `table.collect` for a terminal: how good, then what it costs, then what is to be said of it."""
  parts = [tables.text(head, rows, left=left) for head, rows, left in _tables(result)]
  return "\n\n".join([*parts, "\n".join(_notes(result))])


def markdown(result: Mapping) -> str:
  """The result in Markdown."""
  parts = [tables.markdown(head, rows, left=left) for head, rows, left in _tables(result)]
  return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(result))]) + "\n"


def latex(result: Mapping) -> str:
  """The result as LaTeX tabulars, for a document that uses the package booktabs; the notes are comments."""
  comments = [r"% \usepackage{booktabs}", *map(tables.latex_comment, _notes(result))]
  parts = [tables.latex(head, rows, left=left) for head, rows, left in _tables(result)]
  return "\n".join(["\n".join(comments), "\n\n\\bigskip\n".join(parts), ""])


def csv(result: Mapping) -> str:
  """The result as CSV, a line a run, numbers as they are."""
  head = [*_CSV, *(f"private_{name}" for name in _CSV_PRIVATE), *(f"published_{name}" for name in _CSV_PUBLISHED)]
  of = lambda row, kind, names: [(row[kind] or {}).get(name) for name in names]
  cell = lambda value: "; ".join(map(str, value)) if isinstance(value, list) else value
  rows = [
    [*(row[name] for name in _CSV), *of(row, "private", _CSV_PRIVATE), *of(row, "published", _CSV_PUBLISHED)]
    for row in result["runs"]
  ]
  return tables.csv(head, [[cell(value) for value in row] for row in rows])


def write_tables(result: Mapping, workdir: pathlib.Path) -> list[str]:
  """Writes the table in each form; returns the files' names."""
  files.write_json(workdir / "table.json", result)
  forms = {"table.md": markdown(result), "table.csv": csv(result), "table.tex": latex(result)}
  for name, content in forms.items():
    files.write_bytes(workdir / name, content.encode())
  return ["table.json", *forms]


def write_figures(result: Mapping, workdir: pathlib.Path) -> list[str]:
  """Draws what the study yields, as far as there is something to draw; returns the files' names.

  Raises:
    UserError: for a run whose record cannot be read.
  """
  written = []
  measured = [row for row in result["runs"] if row["head_shares"] is not None]
  if 0 < len(measured) <= _COMPARED:
    folder.write_figures(workdir, {"comparison": figures.comparison(measured, result["max_entropy"])})
    written.append("comparison.png")
  names = result["study"]["figures"]
  if names and measured:
    from entropy_attn.report import paper

    drawn = paper.paper_figures(names, result, workdir)
    written += [path.name for path in folder.write_figures(workdir, drawn, ("png", "pdf"))]
    left = [name for name in names if name not in drawn]
    for name, reason in paper.missing(left, result, workdir).items():  # it reads the runs' courses again
      say(f"{name} is not drawn: {reason}")
  return written


def write(result: Mapping, workdir: pathlib.Path) -> tuple[list[str], bool]:
  """Writes tables and figures; returns the files' names, and whether all could be drawn: what could not is told."""
  written = write_tables(result, workdir)
  try:
    return written + write_figures(result, workdir), True
  except UserError as error:
    say(f"not all figures are drawn: {error}")
    return written, False


def _tables(result: Mapping):
  """(head, rows, columns set to the left) of each table."""
  rows = result["runs"]
  yield _QUALITY, [_quality(row) for row in rows], _QUALITY_LEFT
  yield _COST, [_cost(row) for row in rows], _COST_LEFT


def _quality(row: Mapping) -> list[str]:
  published = row["published"] or {}
  return [
    row["name"],
    row["architecture"],
    _spread(row),
    "NaN" if published.get("diverged") else _number(published.get("perplexity"), ".2f"),
    _number(row["change"], "+.1%").replace("%", " %"),
    _number(row["bits_per_byte"], ".3f"),
    tables.NONE if row["head_shares"] is None else tables.percent(row["head_shares"]),
    _published_heads(published),
    _number(row["nonfinite_rows"], ","),
    row["status"] if len(row["seeds"]) == 1 else f"{row['status']}, {_counted(row)} seeds",
    tables.NONE if row["seconds"] is None else tables.duration(row["seconds"]),
  ]


def _cost(row: Mapping) -> list[str]:
  private, published = row["private"], row["published"] or {}
  giga = lambda name: f"{private[name] / 1e9:.3f}" if private else tables.NONE
  took = lambda name: tables.duration(private[name]) if private else tables.NONE
  return [
    row["name"],
    f"{row['parameters']:,}",
    tables.large(row["ffn_flops"]),
    tables.large(row["attention_flops"]),
    giga("bytes"),
    giga("online_bytes"),
    took("lan_seconds"),
    took("lan_online_seconds"),
    took("wan_seconds"),
    took("wan_online_seconds"),
    _number(published.get("gigabytes"), ".2f"),
    _number(published.get("minutes"), ".2f"),
    "  ".join(row["nonlinear_ops"]),
  ]


def _spread(row: Mapping) -> str:
  """'69.53 ± 0.41', the sample standard deviation over seeds."""
  if row["perplexity"] is None:
    return tables.NONE
  spread = "" if row["perplexity_sd"] is None else f" ± {row['perplexity_sd']:.2f}"
  return f"{row['perplexity']:.2f}{spread}"


def _published_heads(published: Mapping) -> str:
  if published.get("head_shares"):
    return tables.percent(published["head_shares"])
  top = published.get("top_share")
  return tables.NONE if top is None else f"top {100 * top:.3g} %"


def _counted(row: Mapping) -> str:
  there = sum(p is not None for p in row["perplexities"])
  return str(there) if there == len(row["seeds"]) else f"{there} of {len(row['seeds'])}"


def _number(value, form: str) -> str:
  return tables.NONE if value is None else format(value, form)


def _notes(result: Mapping) -> list[str]:
  """What is to be said below the table."""
  rows, notes = result["runs"], []
  if result["max_entropy"] is not None:
    notes.append(f"Max = {result['max_entropy']:.2f} nats for all runs; ± is the sample standard deviation over seeds.")
  if result["study"]["baseline"]:
    notes.append(f"Changes are those of the mean PPL against {result['study']['baseline']}.")
  if any(row["published"] for row in rows):
    notes.append("Published: the paper's model and data at full size, whatever the size of the run beside it.")
  if any(row["private"] for row in rows):
    notes.append("GB and time of one private inference of T tokens are predicted; online: what waits for the prompt.")
  notes += [_pair(pair) for pair in result["pairs"]]
  notes += [f"{row['name']} {row['status']}: {row['reason']}" for row in rows if row["reason"]]
  unpriced = {}
  for row in rows:
    if row["private_reason"]:
      unpriced.setdefault(row["private_reason"], []).append(row["name"])
  notes += [f"No private price for {shorten(names)}: {reason}" for reason, names in unpriced.items()]
  return notes + _other_commits(result)


def _pair(pair: Mapping) -> str:
  """'ereg against scfuffn, PPL −11.2 (−11.0, −11.9, −10.8), paired t-test p = 0.001'."""
  head = f"{pair['a']} against {pair['b']}"
  if pair["mean"] is None:
    return f"{head}: {pair['reason']}."
  each = ", ".join(f"{d:+.2f}" for d in pair["differences"])
  test = f"paired t-test p = {pair['p']:.2g}" if pair["p"] is not None else f"no test ({pair['reason']})"
  return f"{head}: PPL {pair['mean']:+.2f} ({each}), {test}."


def _other_commits(result: Mapping) -> list[str]:
  """A line for each commit, other than that of this table, at which runs were trained."""
  found, now = {}, result["study"]["commit"]
  for row in result["runs"]:
    for name, commit in zip(row["folders"], row["commits"], strict=True):
      if commit and now and commit != now:
        found.setdefault(commit, []).append(name)
  return [f"Trained at commit {c[:12]}{c[40:]}, not {now[:12]}{now[40:]}: {shorten(n)}." for c, n in found.items()]
