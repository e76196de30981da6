"""The account of an inference: rows of bytes, rounds and seconds, summed by operation and by layer, as a table."""

from collections.abc import Mapping, Sequence
import csv
import io

from entropy_attn.report import tables


def grouped(rows: Sequence[Mapping], key: str, fields: Sequence[str]) -> dict[str, dict]:
  """Sums of the rows' fields by their `key`, in the order of the rows, with each group's share of all bytes."""
  groups: dict[str, dict] = {}
  for row in rows:
    group = groups.setdefault(row[key], dict.fromkeys(fields, 0))
    for name in fields:
      group[name] += row[name]
  total = sum(group["bytes"] for group in groups.values())
  return {name: group | {"share": group["bytes"] / total if total else 0.0} for name, group in groups.items()}


def layers(rows: Sequence[Mapping], fields: Sequence[str]) -> dict[str, dict]:
  """The sums of each layer's rows as `grouped` gives them, and within each, by_operation, of its operations."""
  return {
    name: group | {"by_operation": grouped([row for row in rows if row["layer"] == name], "operation", fields)}
    for name, group in grouped(rows, "layer", fields).items()
  }


def phases(rows: Sequence[Mapping], fields: Sequence[str]) -> dict[str, dict]:
  """What is done before there is a prompt (offline), and after (online): sums of the fields, and by_operation."""
  found = {}
  for phase, offline in (("offline", True), ("online", False)):
    part = [row for row in rows if row["offline"] == offline]
    sums = {name: sum(row[name] for row in part) for name in ("bytes", "rounds", "seconds")}
    found[phase] = sums | {"by_operation": grouped(part, "operation", fields)}
  return found


def phases_text(result: Mapping) -> str:
  """The account of `phases` by operation: of the whole where all is online but the keys, else apart."""
  offline, online = (result[phase]["by_operation"] for phase in ("offline", "online"))
  if set(offline) <= {"setup"}:
    return table("operation", result["by_operation"], by_size=True)
  before = table("before the prompt", offline, by_size=True)
  return f"{before}\n\n{table('with the prompt', online, by_size=True)}"


def csv_text(results: Mapping[str, Mapping]) -> str:
  """Operation × layer of some inferences as CSV, a line for each: model, layer, operation, bytes, rounds, seconds.

  Args:
    results: by the model's name, what has by_layer with by_operation in it.
  """
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(("model", "layer", "operation", "bytes", "rounds", "seconds"))
  for model, result in results.items():
    for layer, of_layer in result["by_layer"].items():
      for operation, group in of_layer["by_operation"].items():
        writer.writerow((model, layer, operation, *(group[name] for name in ("bytes", "rounds", "seconds"))))
  return out.getvalue()


def tokens_table(length: int, by_token: Sequence[Mapping]) -> str:
  """MB, rounds and seconds of a prompt and of each token after it, without the session's keys."""
  rows = [
    (
      f"prompt of {length}" if i == 0 else f"token {i + 1}",
      f"{of['bytes'] / 1e6:,.2f}",
      f"{of['rounds']:,.0f}",
      f"{of['seconds']:,.1f}",
    )
    for i, of in enumerate(by_token)
  ]
  return tables.text(("inference", "MB", "rounds", "seconds"), rows)


def side_by_side(results: Sequence[Mapping]) -> str:
  """Bytes, rounds and seconds of some inferences by operation, under the letters A, B, …, the largest first."""
  letters = [chr(ord("A") + i) for i in range(len(results))]
  columns = {"MB": ("bytes", 1e6, ",.2f"), "rounds": ("rounds", 1, ",.0f"), "seconds": ("seconds", 1, ",.1f")}
  found = [result["by_operation"] for result in results]
  names = {name for groups in found for name in groups}
  largest = lambda name: max(groups[name]["bytes"] for groups in found if name in groups)
  rows = []
  for name in sorted(names, key=lambda name: (-largest(name), name)):
    cells = [
      format(groups[name][field] / unit, form) if name in groups else tables.NONE
      for field, unit, form in columns.values()
      for groups in found
    ]
    rows.append((name, *cells))
  totals = [
    format(sum(group[field] for group in groups.values()) / unit, form)
    for field, unit, form in columns.values()
    for groups in found
  ]
  head = ("operation", *(f"{title} {letter}" for title in columns for letter in letters))
  return tables.text(head, [*rows, ("total", *totals)], total=True)


def table(head: str, groups: Mapping[str, Mapping], *, by_size: bool = False) -> str:
  """Bytes, rounds and seconds of each group, and their sum, as text.

  Args:
    head: what the groups are.
    groups: as `grouped` gives them.
    by_size: the largest first; else in their order.
  """
  items = sorted(groups.items(), key=lambda item: -item[1]["bytes"]) if by_size else list(groups.items())
  ways = {"server → client": "server_to_client", "client → server": "client_to_server"}
  ways = {title: way for title, way in ways.items() if way in items[0][1]} | {"MB": "bytes"}
  total = {name: sum(group[name] for _, group in items) for name in (*ways.values(), "share", "rounds", "seconds")}
  rows = []
  for name, group in [*items, ("total", total)]:
    sizes = [f"{group[way] / 1e6:,.2f}" for way in ways.values()]
    rows.append((name, *sizes, f"{100 * group['share']:.1f} %", f"{group['rounds']:,.0f}", f"{group['seconds']:,.1f}"))
  return tables.text((head, *ways, "share", "rounds", "seconds"), rows, total=True)
