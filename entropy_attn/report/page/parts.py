"""What the pages share: their scripts, colours, policy, and small pieces of HTML."""

import base64
from collections.abc import Mapping
import hashlib
import html
import io
import json
import pathlib

import numpy as np
from PIL import Image

from entropy_attn.report import figures, style

_HERE = pathlib.Path(__file__).parent
_DPI = 80  # of the figures for browsers without scripts


def source(*names: str) -> str:
  """Files beside this one, one after the other."""
  return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


def data(content: Mapping) -> str:
  """JSON for a page's program, such that no text in it ends the element that holds it."""
  return json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def text(value) -> str:
  """What a value says, as HTML."""
  return html.escape(str(value))


def policy(scripts, whom: str) -> str:
  """What the page may do: run these very scripts, style itself, show pictures that lie in it."""
  hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
  return (
    f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    f"form-action 'none'; connect-src '{whom}'"
  )


def variables() -> str:
  """The colours as CSS: light, and dark where the reader's system is."""
  rules = {name: " ".join(f"--{key}: {color};" for key, color in of.items()) for name, of in style.PAGE.items()}
  return (
    f":root {{ color-scheme: light dark; {rules['light']} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {rules['dark']} }} }}"
  )


def colors() -> dict[str, list[str]]:
  """The colour map of entropies in 256 steps, and the ink that reads best on each."""
  shades = [style.CMAP(i / 255) for i in range(256)]
  return {"colors": style.hex_colors(shades), "inks": [style.ink_on(shade) for shade in shades]}


def fact(what: str, figure: str, remark: str) -> str:
  """An entry of the list under the title."""
  return f'<div><dt>{text(what)}</dt><dd>{text(figure)}</dd><dd class="remark">{text(remark)}</dd></div>'


def picture(about: str, figure) -> str:
  """A figure as an image within the page, of few colours."""
  pixels = Image.fromarray(np.ascontiguousarray(figures.pixels(figure, _DPI)))
  out = io.BytesIO()
  pixels.quantize(64).save(out, "PNG", optimize=True)
  data = base64.b64encode(out.getvalue()).decode()
  return f'<img alt="{text(about)}" width="{pixels.width}" height="{pixels.height}" src="data:image/png;base64,{data}">'
