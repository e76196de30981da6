"""What the private commands show: a bar with the layer at work, and tables."""

from collections.abc import Mapping, Sequence
import sys

from tqdm import tqdm


class Steps:
  """A bar over a program's steps, in the order they run; without a terminal, a line a layer."""

  def __init__(self, what: str):
    self._what, self._bar, self._last = what, None, None

  def __call__(self, step, index: int, count: int) -> None:
    place = step.kind if step.layer is None else f"layer {step.layer}"
    if not sys.stderr.isatty():
      if place != self._last:
        print(f"{self._what}: {place}", file=sys.stderr, flush=True)
        self._last = place
      return
    if self._bar is None or index == 0:
      self.close()
      self._bar = tqdm(total=count, unit="step", desc=self._what, leave=False, dynamic_ncols=True)
    self._bar.set_postfix_str(f"{place}: {step.kind}", refresh=False)
    self._bar.update(index - self._bar.n)
    self._bar.refresh()

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


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
  """Bytes, rounds and seconds of each group, and their sum."""
  items = sorted(groups.items(), key=lambda item: -item[1]["bytes"]) if by_size else list(groups.items())
  ways = {"server → client": "server_to_client", "client → server": "client_to_server"}
  ways = {title: way for title, way in ways.items() if way in items[0][1]} | {"MB": "bytes"}
  total = {name: sum(group[name] for _, group in items) for name in (*ways.values(), "share", "rounds", "seconds")}
  rows = [(head, *ways, "share", "rounds", "seconds")]
  for name, group in [*items, ("total", total)]:
    sizes = [f"{group[way] / 1e6:,.2f}" for way in ways.values()]
    rows.append((name, *sizes, f"{100 * group['share']:.1f} %", f"{group['rounds']:,.0f}", f"{group['seconds']:,.1f}"))
  return columns(rows, total=True)


def columns(rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
  """Rows under their head, the first cell to the left and the others to the right; `total`: the last is a sum."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = [
    "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))  # noqa: B905
    for row in rows
  ]
  rule = "-" * len(lines[0])
  body = [*lines[1:-1], rule, lines[-1]] if total else lines[1:]
  return "\n".join([lines[0], rule, *body])
