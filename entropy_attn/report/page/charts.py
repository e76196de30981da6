"""The charts of the report as Vega-Lite, built with Altair, and the program that draws them; alone imports either.

A chart has no data of its own: the page gives it some by name, and gives it new ones when something is chosen.
"""

from collections.abc import Callable
import contextlib
import functools
import hashlib
from importlib import metadata
import json
import os
import pathlib

from entropy_attn import files
from entropy_attn.report import style

_HEIGHT = 230


@functools.cache
def bundle() -> str:
  """Vega, Vega-Lite and vega-embed as JavaScript that needs nothing else and sets window.vegaEmbed."""

  def make() -> str:
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")

  return _kept("vega.js", metadata.version("vl-convert-python"), make)


@functools.cache
def specs() -> dict[str, dict]:
  """Every chart by name."""
  sources = [pathlib.Path(path).read_bytes() for path in (__file__, style.__file__)]
  version = metadata.version("altair") + hashlib.sha256(b"".join(sources)).hexdigest()
  return json.loads(_kept("charts.json", version, lambda: json.dumps(_built())))


def _kept(name: str, version: str, make: Callable[[], str]) -> str:
  """What make() returns, from the user's cache folder where it is there: to make it takes seconds, of every run.

  Args:
    version: of what it is made with.
  """
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  path = pathlib.Path(base, "entropy_attn", f"{hashlib.sha256(version.encode()).hexdigest()[:16]}-{name}")
  with contextlib.suppress(OSError, ValueError):
    digest, _, text = path.read_text(encoding="utf-8").partition("\n")
    if digest == hashlib.sha256(text.encode()).hexdigest():  # else it is damaged
      return text
  text = make()
  with contextlib.suppress(OSError):  # a home that cannot be written costs the next run seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
  return text


def _built() -> dict[str, dict]:
  """Every chart by name, built with Altair."""
  import altair as alt

  step = alt.X("step:Q", title="training step", axis=alt.Axis(format="~s", tickCount=6), scale=alt.Scale(nice=False))
  named = lambda name: alt.Chart(alt.NamedData(name))
  grey = {"strokeDash": [5, 4], "strokeWidth": 1.2}

  def marks(x):
    """Where the run diverged: a line and its words."""
    rule = named("mark").mark_rule(aria=False, strokeWidth=2, strokeDash=[2, 3], color=alt.expr("warn")).encode(x=x)
    words = named("mark").mark_text(
      aria=False, align="right", dx=-6, dy=12, baseline="top", color=alt.expr("warn"), fontWeight=600
    )
    return rule + words.encode(x=x, y=alt.value(0), text="text:N")

  def value(name: str, title: str, **scale):
    return alt.Y(f"{name}:Q", title=title, scale=alt.Scale(**scale), axis=alt.Axis(tickCount=5))

  loss = value("value", "loss, nats", zero=False, nice=True)
  train = named("train").mark_line(strokeWidth=1.4, color=alt.expr("first")).encode(x=step, y=loss)
  evaluated = (
    named("eval")
    .mark_point(filled=True, size=46, opacity=1, color=alt.expr("second"))
    .encode(
      x=step, y=loss, tooltip=[alt.Tooltip("step:Q", format=","), alt.Tooltip("value:Q", title="loss", format=".4f")]
    )
  )
  layer_lines = (
    named("table")
    .mark_line(strokeWidth=1.6)
    .encode(
      x=step,
      y=value("entropy", "mean entropy, nats", domainMin=0),
      color=alt.Color("layer:O", title="layer", legend=alt.Legend(columns=1, symbolType="stroke", symbolStrokeWidth=3)),
    )
  )
  ceiling = named("ceiling").mark_rule(aria=False, **grey, color=alt.expr("muted")).encode(y="entropy:Q")
  ceiling_words = named("ceiling").mark_text(
    aria=False, align="right", baseline="bottom", dy=-3, color=alt.expr("muted")
  )
  ceiling_text = ceiling_words.encode(x=alt.value(alt.expr("width")), y="entropy:Q", text="text:N")

  bins = alt.Color(
    "bin:N",
    title=None,
    sort=None,
    scale=alt.Scale(domain=list(style.BIN_NAMES), range=style.hex_colors(style.BIN_COLORS)),
    legend=None,  # the page has one that wraps
  )
  shares = (
    named("table")
    .mark_rect()
    .encode(
      x=step,
      x2="until:Q",
      y=alt.Y("low:Q", title="share of heads", axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1])),
      y2="high:Q",
      color=bins,
      tooltip=["step:Q", "bin:N", alt.Tooltip("share:Q", format=".0%")],
    )
  )

  entropy = value("entropy", "entropy, nats", domainMin=0)
  small = alt.X("step:Q", title=None, axis=alt.Axis(format="~s", tickCount=5), scale=alt.Scale(nice=False))
  band = named("table").mark_area(opacity=0.16, color=alt.expr("second"), aria=False)
  head = (
    band.encode(x=small, y=alt.Y("low:Q", title="entropy, nats", axis=alt.Axis(minExtent=34)), y2="high:Q")
    + named("table").mark_line(**grey, color=alt.expr("second")).encode(x=small, y="threshold:Q")
    + named("table").mark_line(strokeWidth=2, color=alt.expr("first")).encode(x=small, y=entropy)
  )

  def one(title: str, **axis):
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=3, minExtent=34, **axis))
    return named("table").mark_line(strokeWidth=1.6, color=alt.expr("first")).encode(x=small, y=y)

  compared = (
    named("table")
    .mark_line(strokeWidth=1.8)
    .encode(
      x=step,
      y=loss,
      color=alt.Color("run:N", title=None, sort=None, legend=alt.Legend(orient="top", columns=1, labelLimit=320)),
      strokeDash=alt.StrokeDash("run:N", title=None, sort=None),
    )
  )
  cost = (
    named("table")
    .mark_bar()
    .encode(
      y=alt.Y("operation:N", title=None, sort=alt.EncodingSortField("seconds", op="sum", order="descending")),
      x=alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=5)),
      color=alt.Color("part:N", sort=None, legend=None),
      order="order:Q",
      tooltip=["operation:N", "part:N", alt.Tooltip("seconds:Q", format=",.3~r")],
    )
  )
  built = {
    "loss": (train + evaluated + marks(step), _HEIGHT, "Loss over training steps"),
    "layers": (
      layer_lines + ceiling + ceiling_text + marks(step),
      _HEIGHT,
      "Mean entropy of each layer over steps",
    ),
    "shares": (shares + marks(step), _HEIGHT, "Shares of heads by quarter of Max over steps"),
    "head": (head + marks(small), 170, "Entropy of the chosen head over steps, with its threshold"),
    "temperature": (one("temperature"), 80, "Temperature of the chosen head over steps"),
    "share": (one("of the penalty", format="%"), 80, "The chosen head's share of the penalty over steps"),
    "compare": (compared, _HEIGHT, "Training losses of both runs"),
    "cost": (cost, _HEIGHT, "Seconds by operation"),
  }
  return {name: _finished(alt, *parts) for name, parts in built.items()}


def _finished(alt, chart, height, description: str) -> dict:
  """A chart as Vega-Lite: as wide as its place; colours are parameters that the page sets by theme."""
  names = ("first", "second", "warn", "muted")
  parameters = [alt.param(name=name, value=style.PAGE["light"][name]) for name in names]
  chart = chart.add_params(*parameters).properties(
    width="container",
    height=height,
    description=description,
    autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
  )
  spec = chart.to_dict(validate=False)
  spec.pop("config", None)  # the page's own
  return spec


def themes() -> dict[str, dict]:
  """Vega's config, light and dark."""
  return {name: _theme(colors, name == "dark") for name, colors in style.PAGE.items()}


def _theme(colors: dict, dark: bool) -> dict:
  font = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif'
  axis = {"domain": False, "ticks": False, "labelPadding": 6, "titlePadding": 10, "titleFontWeight": 500}
  return {
    "background": None,
    "font": font,
    "padding": {"left": 0, "right": 4, "top": 4, "bottom": 4},
    "view": {"stroke": None},
    "axis": axis
    | {
      "labelColor": colors["muted"],
      "titleColor": colors["muted"],
      "gridColor": colors["line"],
      "labelFontSize": 12,
      "titleFontSize": 12,
    },
    "axisX": {"grid": False},
    "legend": {"labelColor": colors["ink"], "titleColor": colors["muted"], "labelFontSize": 12, "titleFontSize": 12},
    "range": {
      "ordinal": {"scheme": "cividis", "extent": [0.28, 1] if dark else [0, 0.82]},
      "category": [colors["first"], colors["second"], colors["third"]],
    },
    "bar": {"height": 13},
    "text": {"font": font, "fontSize": 12},
  }
