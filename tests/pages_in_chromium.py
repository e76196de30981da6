"""A real browser for the tests of pages, and a page in it that nothing may go wrong in."""

import contextlib
import os
import re
import shutil

from playwright.sync_api import sync_playwright

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
PATIENCE = 60_000  # ms


@contextlib.contextmanager
def chromium():
  """The system's Chromium, or the one that Playwright installed."""
  found = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
  sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium has none for root
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=found, args=sandbox)
    yield browser
    browser.close()


@contextlib.contextmanager
def visitor(browser, ready: str | None = None):
  """Opens pages at a size and in a theme; at the end nothing may have gone wrong in them, or left them.

  Args:
    ready: a condition in JavaScript that is waited for where scripts run.
  """
  wrong, contexts = [], []

  def open_page(address, *, size="wide", theme="light", scripts=True, allow=()):
    width, height = SIZES[size]
    context = browser.new_context(
      viewport={"width": width, "height": height},
      color_scheme=theme,
      java_script_enabled=scripts,
      reduced_motion="reduce",
    )
    contexts.append(context)
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    allowed = ("data:", address, *allow)
    tab.on("request", lambda request: request.url.startswith(allowed) or wrong.append(request.url))
    tab.goto(address)
    if scripts and ready:
      tab.wait_for_function(ready)
    return tab

  yield open_page
  for context in contexts:
    context.close()
  assert wrong == []


def cell(tab, layer, head):
  """Of the map of heads."""
  return tab.locator("#map").get_by_role("button", name=re.compile(rf"^Layer {layer}, head {head}:"))
