"""The account of an inference: rows of bytes, rounds and seconds, summed by operation and by layer, as a table."""

from collections.abc import Mapping, Sequence

from entropy_attn.report import tables


def grouped(rows: Sequence[Mapping], key: str, fields: Sequence[str]) -> dict[str, dict]:
  """Sums of the rows' fields by their `key`, in the order of the rows, with each group's share of all bytes."""
  groups: dict[str, dict] = {}
  for row in rows:
    group = groups.setdefault(row[key], dict.fromkeys(fields, 0))
    for name in fields:
      group[name] += row[name]
  total = sum(group["bytes"] for group in groups.values())
  return {name: group | {"share": group["bytes"] / total} for name, group in groups.items()}


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
