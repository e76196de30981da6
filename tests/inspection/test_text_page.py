"""The page of a text in a real browser: every control by its role and name, and hostile text."""

import re

from axe_playwright_python.sync_playwright import Axe
import numpy as np
from pages_in_chromium import SIZES, cell, chromium, visitor
from playwright.sync_api import expect
import pytest

from entropy_attn.inspection import tables, whole
from entropy_attn.report.page import text_page

NASTY = (
  "</script><script>window.bad = 1</script><img src=x onerror='window.bad = 1'> <!-- & -->\n"
  "שלום עולם \u202eevil\u202c a\u200bb \ufeff👩‍👩‍👧 日本語\t\x07 $name ${data}\r\nend"
)


@pytest.fixture(scope="module")
def browser():
  with chromium() as opened:
    yield opened


@pytest.fixture
def visit(browser):
  with visitor(browser) as open_page:
    yield open_page


@pytest.fixture(scope="module")
def inspected(model, tmp_path_factory):
  """What is found on a hostile text, and the address of its page. Layer 1 is not finite where it reads five tokens."""
  folder = tmp_path_factory.mktemp("page")
  (folder / "<b>nasty.py").write_bytes(NASTY.encode())
  found = whole.inspect(model, folder / "<b>nasty.py", judged=0)
  kept = found["kept"]["entropy_LxHxN"] = np.array(found["kept"]["entropy_LxHxN"])
  kept[1, :, found["kept"]["positions"] == 4] = np.nan
  found["private"] = made_verdict()
  path = folder / "page.html"
  path.write_text(text_page.render(found, tables.of_page(found)), encoding="utf-8")
  return found, path.as_uri()


def made_verdict():
  tight = {"place": "norm (mul) of layer 1", "largest": 3e7, "limit": 6.7e7, "spare_bits": 1.16}
  layer = {"residual": 1.0, "score": 3.0, "exponent": -4.0, "variance": (0.01, 9.0), "activation": 2.0, "fits": False}
  return {
    "ready": False, "text": "not ready: norm (mul) of layer 1 reaches 3e+07 of 6.71e+07", "sequences": 2, "length": 16,
    "outside": ["norm (mul) of layer 1 reaches 3e+07 of 6.71e+07"], "tightest": tight,
    "layers": [layer | {"layer": place, "tightest": tight} for place in (0, 1, None)],
  }  # fmt: skip


def test_hostile_text_is_shown_as_it_is_and_does_nothing(inspected, visit):
  found, address = inspected
  tab = visit(address)
  shown = tab.locator("#tokens").evaluate("node => node.textContent")
  assert shown == text_page.seen(NASTY) == "".join(map(text_page.seen, found["kept"]["strings"]))
  assert "⟨202E⟩evil⟨202C⟩ a⟨200B⟩b ⟨FEFF⟩👩‍👩‍👧" in shown and "⟨0007⟩" in shown and "${data}" in shown
  expect(tab.get_by_role("heading", level=1)).to_have_text("<b>nasty.py")
  assert tab.evaluate("window.bad") is None
  expect(tab.locator("header .alert")).to_contain_text("norm (mul) of layer 1 reaches 3e+07")


def test_the_chosen_head_shades_the_tokens_and_tells_them(inspected, visit):
  found, address = inspected
  tab, kept = visit(address), found["kept"]
  reading = tab.locator("#token")
  for layer, head in ((0, 0), (1, 1)):
    cell(tab, layer, head).click()
    expect(tab.get_by_role("region", name=f"Layer {layer}, head {head}")).to_be_visible()
    expect(cell(tab, layer, head)).to_have_attribute("aria-pressed", "true")
    for n in (0, 3, 9):
      tab.locator(".token").nth(n).click()
      expect(reading).to_contain_text(f"Token {n + 1} ")
      expect(reading).to_contain_text(f"{kept['entropy_LxHxN'][layer, head, n]:.2f} nats")
  assert tab.locator(".token.lost").count() == np.isnan(kept["entropy_LxHxN"][1, 1]).sum() > 0
  colors = "[...document.querySelectorAll('.token')].map(node => node.style.background)"
  before = tab.evaluate(colors)
  tab.get_by_label("Shade by").select_option("part")
  assert tab.evaluate(colors) != before and tab.evaluate(colors)[0] == ""  # it reads itself alone
  tab.get_by_label("Layer", exact=True).select_option("0")
  tab.get_by_label("Head", exact=True).select_option("1")
  expect(tab.get_by_role("region", name="Layer 0, head 1")).to_be_visible()
  for of, row in zip(found["profile"], tab.locator("#profile tbody tr").all(), strict=True):
    expect(row).to_contain_text(f"{of['entropy_LxH'][0, 1]:.2f} of {of['ceiling']:.2f}")
  tab.reload()
  expect(tab.get_by_role("region", name="Layer 0, head 1")).to_be_visible()


def test_tokens_and_heads_are_reached_by_keyboard(inspected, visit):
  found, address = inspected
  tab, last = visit(address), len(found["kept"]["strings"])
  tokens = tab.get_by_role("group", name="The text, token by token")
  tokens.focus()
  for key, n in (("Right", 2), ("Right", 3), ("Left", 2), ("End", last), ("Right", last), ("Home", 1)):
    tab.keyboard.press(key if key in ("Home", "End") else f"Arrow{key}")
    expect(tab.locator("#token")).to_contain_text(f"Token {n} ")
  cell(tab, 0, 0).focus()
  tab.keyboard.press("ArrowDown")
  expect(tab.locator("#reading")).to_contain_text(f"Layer 1, head 0: {found['entropy_LxH'][1, 0]:.2f} nats")
  tab.keyboard.press("Enter")
  expect(tab.get_by_role("region", name="Layer 1, head 0")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_in_a_readers_way(inspected, visit, size, theme):
  tab = visit(inspected[1], size=size, theme=theme)
  tab.get_by_text("All that does not fit").click()
  cell(tab, 1, 0).click()
  found = Axe().run(tab)
  assert found.violations_count == 0, found.generate_report()
  assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("size", SIZES)
def test_without_scripts_a_figure_and_tables_stand_in(inspected, visit, size):
  tab = visit(inspected[1], size=size, scripts=False)
  expect(tab.get_by_role("img", name="Entropy of every head")).to_be_visible()
  expect(tab.get_by_role("row", name=re.compile("^9–16"))).to_be_visible()
  expect(tab.get_by_text("Perplexity", exact=True)).to_be_visible()
  assert tab.get_by_role("combobox").count() == 0
  assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
