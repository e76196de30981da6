"""What pictures have in common: colours, the colour map of entropies, resolution. A colour lives here alone."""

import matplotlib

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
