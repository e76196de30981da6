"""What pictures have in common: colours, the colour map of entropies, resolution. A colour lives here alone."""

import matplotlib
import matplotlib.colors

INK, MUTED, GRID, STRIP = "#1f2933", "#5f6b7a", "#d9dee4", "#f4f5f6"
DPI = 160
PRINT_DPI, PRINT_WIDTH = 300, 7.2  # of figures for a paper: dots an inch, and inches: both columns of a page
CMAP = matplotlib.colormaps["cividis"]  # of entropies, as published, over 0 … Max
BIN_COLORS = tuple(CMAP((k + 0.5) / 4) for k in range(4))  # each head bin in the colour of its middle
NONFINITE = {"facecolor": "#d4d4d4", "edgecolor": "#8a8a8a", "hatch": "////", "linewidth": 0.0}

# Of the operations of a private inference, in the order in which bars stack them.
OPERATION_COLORS = {
  "embedding": "#7f8c9b",
  "projection": "#2f6f9f",
  "temperature": "#69a7d0",
  "scores": "#1b9e77",
  "maximum": "#8fd0b5",
  "exponential": "#d95f02",
  "reciprocal": "#f5b26b",
  "values": "#7570b3",
  "division": "#b6b2dc",
  "norm": "#a6761d",
  "activation": "#e7298a",
  "ffn": "#66a61e",
  "vocabulary": "#4d4d4d",
  "reveal": "#8c6bb1",
  "check": "#c9c9c9",
  "cache": "#e0e0e0",
  "setup": "#bdbdbd",
}
# Of runs in figures for a paper (Okabe and Ito's colours without the yellow, which is lost on white). In grey print
# the dashes and the marks tell them apart.
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#1f2933", "#cc79a7", "#e69f00", "#56b4e9")
RUN_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)))
RUN_MARKS = ("o", "s", "^", "v", "p", "<", "h", ">")
PUBLISHED = {"color": INK, "marker": "D", "markerfacecolor": "white", "markeredgewidth": 1.1, "markersize": 4.5}
LINE_COLORS = ("#2f6f9f", "#d95f02", "#1b9e77", "#7570b3")  # of models in curves

BIN_NAMES = ("collapsed: 0 … Max/4", "Max/4 … Max/2", "Max/2 … 3Max/4", "overloaded: 3Max/4 … Max")

# Of the HTML report. Texts have a contrast of at least 4.5 on both backgrounds, lines and marks of at least 3.
PAGE = {
  "light": {
    "paper": "#fbfaf7", "panel": "#ffffff", "ink": "#1d2530", "muted": "#5a6472", "line": "#e3e1da", "edge": "#8b9098",
    "first": "#1f5f8f", "second": "#b35309", "third": "#6b6f8f", "warn": "#b3261e", "soft": "#f1efe8",
  },
  "dark": {
    "paper": "#12151a", "panel": "#191d24", "ink": "#e9e7e1", "muted": "#a2a9b4", "line": "#2b313a", "edge": "#767e8a",
    "first": "#7fb8e4", "second": "#f0a45d", "third": "#a9acd6", "warn": "#ff8f86", "soft": "#222831",
  },
}  # fmt: skip


def hex_colors(colors) -> list[str]:
  """Colours of matplotlib as '#rrggbb'."""
  return [matplotlib.colors.to_hex(color) for color in colors]


def ink_on(background) -> str:
  """White or near-black, whichever has the higher contrast (WCAG) on an RGBA colour."""
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]]
  luminance = sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))
  return "white" if luminance < 0.183 else "black"
