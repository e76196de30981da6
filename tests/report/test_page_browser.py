"""The report in a real browser, headless Chromium: every control by its role and name, and what it changes."""

import contextlib
import json
import re
import threading

from axe_playwright_python.sync_playwright import Axe
import numpy as np
from page_runs import record, write_run, write_study
from pages_in_chromium import PATIENCE, SIZES, cell, chromium, visitor
from playwright.sync_api import expect
import pytest

from entropy_attn.private.price import lines
from entropy_attn.report import tables
from entropy_attn.report.page import data, page, price, watch
from entropy_attn.run import metrics


@pytest.fixture(scope="module")
def browser():
  with chromium() as opened:
    yield opened


@pytest.fixture
def visit(browser):
  with visitor(browser, "document.querySelectorAll('#chart-loss svg, #chart-offline svg').length === 2") as open_page:
    yield open_page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of 3 × 4 heads over 20 records: its folder, and the address of its report."""
  workdir = tmp_path_factory.mktemp("report") / "small"
  write_run(workdir)
  return workdir, page.write(workdir).as_uri()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """Two runs, of which the second diverged."""
  workdir = tmp_path_factory.mktemp("report") / "study"
  write_study(workdir, {"guided": {}, "plain": {"architecture": "sm", "diverged": True}})
  return workdir, page.write(workdir).as_uri()


def trained(workdir):
  return metrics.read(workdir, "train")


def slide(tab, name, value):
  tab.get_by_role("slider", name=name).fill(str(value))


def test_the_slider_shows_the_heads_of_its_step(run, visit):
  workdir, address = run
  tab, records = visit(address), trained(workdir)
  for at in (0, 7, 19):
    slide(tab, "Step", at)
    expect(tab.locator("#step-shown")).to_have_text(f"step {records[at]['step']} of 200")
    for (layer, head), value in np.ndenumerate(np.array(records[at]["entropy_LxH"])):
      expect(cell(tab, layer, head)).to_have_text(f"{value:.2f}")
  assert tab.get_by_role("slider", name="Step").get_attribute("aria-valuetext") == "step 200"


def test_collapsed_and_overloaded_heads_are_named_at_every_step(run, visit):
  workdir, address = run
  tab, largest = visit(address), data.load(workdir)["runs"][0]["max"]
  seen = set()
  for at in range(20):
    slide(tab, "Step", at)
    entropy = np.array(trained(workdir)[at]["entropy_LxH"])
    for place, heads in (("collapsed", entropy < largest / 4), ("overloaded", entropy >= 0.75 * largest)):
      text = tab.locator(f"#{place}").text_content()
      named = set()
      for layer, which in re.findall(r"layer (\d+)(?:: heads? ([\d–, ]+))?", text):
        for part in which.split(", ") if which else ["0–3"]:
          first, _, last = part.partition("–")
          named |= {(int(layer), head) for head in range(int(first), int(last or first) + 1)}
      assert named == set(map(tuple, np.argwhere(heads).tolist())), text
      seen.add((place, bool(named)))
  assert {("collapsed", True), ("collapsed", False), ("overloaded", True)} <= seen


def test_play_goes_through_the_steps_and_can_be_paused(run, visit):
  tab = visit(run[1])
  slider = tab.get_by_role("slider", name="Step")
  tab.get_by_role("button", name="Play").click()
  tab.get_by_role("button", name="Pause").click()
  stopped = int(slider.input_value())
  assert stopped < 19
  tab.wait_for_timeout(300)
  assert int(slider.input_value()) == stopped
  tab.get_by_role("button", name="Play").click()
  expect(slider).to_have_value("19", timeout=PATIENCE)
  expect(tab.get_by_role("button", name="Play")).to_be_visible()


def test_values_are_read_by_pointer_and_by_keyboard(run, visit):
  workdir, address = run
  tab, values = visit(address), np.array(trained(workdir)[-1]["entropy_LxH"])
  reading = tab.locator("#reading")
  cell(tab, 2, 1).hover()
  expect(reading).to_contain_text(f"Layer 2, head 1: {values[2, 1]:.2f} nats")
  tab.mouse.move(5, 5)
  tab.get_by_role("slider", name="Step").focus()
  tab.keyboard.press("Tab")  # one stop for the whole map
  for key, place in (
    ("ArrowRight", (0, 1)),
    ("ArrowDown", (1, 1)),
    ("End", (1, 3)),
    ("Home", (1, 0)),
    ("ArrowUp", (0, 0)),
  ):
    tab.keyboard.press(key)
    expect(cell(tab, *place)).to_be_focused()
    expect(reading).to_contain_text(f"Layer {place[0]}, head {place[1]}: {values[place]:.2f} nats")
  tab.keyboard.press("ArrowLeft")
  expect(cell(tab, 0, 0)).to_be_focused()


def test_a_head_opens_its_course(run, visit):
  workdir, address = run
  tab, records = visit(address), trained(workdir)
  panel = tab.get_by_role("region", name=re.compile("Layer ., head ."))
  title = tab.locator("#head-title")
  line = tab.locator("#chart-head svg path[stroke-width='2']")
  before = line.get_attribute("d")
  cell(tab, 2, 3).click()
  expect(title).to_have_text("Layer 2, head 3")
  tab.wait_for_function(
    "old => document.querySelector(\"#chart-head svg path[stroke-width='2']\").getAttribute('d') !== old", arg=before
  )
  for name in ("head", "temperature", "share"):
    expect(tab.locator(f"#chart-{name} svg")).to_be_visible()
  expect(cell(tab, 2, 3)).to_have_attribute("aria-pressed", "true")
  cell(tab, 1, 2).focus()
  tab.keyboard.press("Enter")
  expect(title).to_have_text("Layer 1, head 2")
  slide(tab, "Step", 4)
  expect(panel).to_contain_text(f"Entropy{records[4]['entropy_LxH'][1][2]:.2f} nats")
  largest = data.load(workdir)["runs"][0]["penalty"]["largest"]
  figure = lambda name: float(re.search(rf"{name}([\d.]+)", panel.text_content())[1])
  assert figure("Temperature") == pytest.approx(records[4]["temperature_LxH"][1][2], rel=1e-3)
  assert figure("Threshold") == pytest.approx(records[4]["thresholds_LxH"][1][2] * largest, rel=1e-3)
  tab.get_by_label("Layer", exact=True).select_option("0")
  tab.get_by_label("Head", exact=True).select_option("1")
  expect(title).to_have_text("Layer 0, head 1")


def test_the_share_of_the_penalty_sums_to_one(run, visit):
  tab = visit(run[1])
  total = 0.0
  for layer, head in np.ndindex(3, 4):
    cell(tab, layer, head).click()
    total += float(re.search(r"penalty([\d.e-]+) %", tab.locator("#head-figures").text_content())[1])
  assert total == pytest.approx(100, abs=0.2)


def test_a_model_without_temperature_says_so(tmp_path, visit):
  write_run(tmp_path, "ln_gelu")
  tab = visit(page.write(tmp_path).as_uri())
  expect(tab.locator("#head-note")).to_contain_text("no learned temperature")
  expect(tab.locator("#chart-temperature")).to_be_hidden()
  expect(tab.locator("#chart-share")).to_be_hidden()


def test_the_charts_of_the_whole_run(run, visit):
  tab = visit(run[1])
  assert tab.locator("#chart-layers .mark-line path").count() == 3
  assert tab.locator("#chart-loss .mark-symbol path").count() == 2  # both evaluations
  assert tab.locator("#chart-shares .mark-rect path").count() >= 20
  where = lambda: tab.locator("#chart-loss .cursor").evaluate("node => node.getBoundingClientRect().left")
  end = where()
  slide(tab, "Step", 0)
  assert where() < end - 300


def test_a_divergence_is_shown_where_it_happened(study, visit):
  tab = visit(study[1])
  alert = tab.locator("#divergence")
  expect(alert).to_be_hidden()
  tab.get_by_role("button", name="plain").click()
  expect(tab.get_by_role("heading", level=1)).to_have_text("plain")
  expect(alert).to_contain_text("step 200: not finite first in the attention of layer 1")
  for name in ("loss", "layers", "shares", "head"):
    expect(tab.locator(f"#chart-{name} svg")).to_contain_text("diverged")
  expect(cell(tab, 1, 0)).to_have_text("nan")
  expect(tab.locator("#map").get_by_role("button", name="Layer 1, head 0: not finite")).to_be_visible()
  tab.get_by_label("Run shown").select_option(label="guided")
  expect(alert).to_be_hidden()
  expect(tab.locator("#chart-loss svg")).not_to_contain_text("diverged")


def test_two_runs_stand_side_by_side_with_what_differs(study, visit):
  tab = visit(study[1])
  compare = tab.get_by_role("region", name="Two runs side by side")
  differences = compare.locator("#differences")
  expect(differences.get_by_role("row", name=re.compile("model.residual_scaling True False"))).to_be_visible()
  expect(differences.get_by_role("row", name=re.compile("Perplexity .* not finite"))).to_be_visible()
  expect(compare.locator("#caption-b")).to_contain_text("plain")
  slide(tab, "Step", 0)
  expect(compare.locator("#caption-b")).to_contain_text("step 10")
  left, right = (compare.locator(f"#map-{side} .cell") for side in "ab")
  assert left.count() == right.count() == 12 and left.all_text_contents() == right.all_text_contents()
  tab.get_by_label("First run").select_option(label="plain")
  expect(differences).to_contain_text("The configurations are the same")
  tab.get_by_label("Second run").select_option(label="guided")
  expect(compare.locator("#caption-b")).to_contain_text("guided")


def test_the_private_cost_follows_its_sliders(run, visit):
  workdir, address = run
  tab, cost = visit(address), data.load(workdir)["runs"][0]["private"]
  took = lambda line: {k: f"{s:.1f} s" if s < 10 else tables.duration(s) for k, s in price.latency(cost, *line).items()}
  for name, line in lines.LINES.items():
    tab.get_by_role("button", name=f"{name}:").click()
    for phase, text in took(line).items():
      expect(tab.locator(f"#{phase}")).to_have_text(text)
  slide(tab, "Bandwidth", 0)
  expect(tab.locator("#bandwidth-shown")).to_have_text("1 Mbit/s")
  expect(tab.locator("#online")).to_have_text(took((1, 80))["online"])
  slide(tab, "Round trip", 0)
  expect(tab.locator("#offline")).to_have_text(took((1, 0))["offline"])
  size = tab.locator("#offline-size").text_content()
  slide(tab, "Threads of each party", 16)
  expect(tab.locator("#threads-shown")).to_have_text("16")
  assert tab.locator("#offline-size").text_content() != size  # each thread has keys of its own
  tab.get_by_text("By operation, in numbers").click()
  expect(tab.get_by_role("row", name=re.compile("^setup, before"))).to_be_visible()
  assert tab.locator("#chart-online .mark-rect path").count() >= 3 * len(cost["online"])


def test_more_threads_divide_the_computation_but_not_the_keys(run, visit):
  tab = visit(run[1])
  tab.get_by_text("By operation, in numbers").click()
  slide(tab, "Bandwidth", 13)
  slide(tab, "Round trip", 0)
  seconds = lambda name: float(
    tab.get_by_role("row", name=re.compile(name)).get_by_role("cell").last.text_content().split()[0]
  )
  slide(tab, "Threads of each party", 1)
  one, keys = seconds("^values, before"), seconds("^setup")
  slide(tab, "Threads of each party", 4)
  assert seconds("^values, before") == pytest.approx(one / 4, abs=0.06)
  assert seconds("^setup") == pytest.approx(keys, abs=0.2)


def test_all_fields_of_the_config_are_there(run, visit):
  tab = visit(run[1])
  tab.get_by_text("All fields of this run").click()
  expect(tab.get_by_role("row", name="model.num_layers 3")).to_be_visible()


def test_a_reload_keeps_what_was_chosen(study, visit):
  tab = visit(study[1])
  tab.get_by_role("button", name="plain").click()
  slide(tab, "Step", 3)
  cell(tab, 1, 1).click()
  tab.reload()
  expect(tab.get_by_role("heading", level=1)).to_have_text("plain")
  expect(tab.locator("#step-shown")).to_have_text("step 40 of 200")
  expect(tab.locator("#head-title")).to_have_text("Layer 1, head 1")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_in_a_readers_way(run, study, visit, size, theme):
  for _, address in (run, study):
    tab = visit(address, size=size, theme=theme)
    for opened in ("By operation, in numbers", "All fields of this run"):
      tab.get_by_text(opened).click()
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    width = SIZES[size][0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("getComputedStyle(document.body).color") != ""
    dark = tab.evaluate(
      "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)[0] < 128"
    )
    assert dark == (theme == "dark")


def test_charts_take_the_readers_theme_when_it_changes(run, visit):
  tab = visit(run[1])
  color = lambda: tab.locator("#chart-loss .mark-line path").first.get_attribute("stroke")
  light = color()
  tab.emulate_media(color_scheme="dark")
  tab.wait_for_function(
    "old => document.querySelector('#chart-loss .mark-line path')?.getAttribute('stroke') !== old", arg=light
  )
  tab.wait_for_function("document.querySelectorAll('#chart-loss svg').length === 1")


@pytest.mark.parametrize("size", SIZES)
def test_without_scripts_the_figures_stand_in_the_page(run, study, visit, size):
  for _, address in (run, study):
    tab = visit(address, size=size, scripts=False)
    expect(tab.get_by_role("img").first).to_be_visible()
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 200)")
    expect(tab.get_by_text("Perplexity", exact=True)).to_be_visible()
    for role in ("slider", "combobox"):
      assert tab.get_by_role(role).count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def test_what_a_run_is_called_does_nothing(tmp_path, visit):
  nasty = "</script><script>window.bad = 1</script><img src=x onerror='window.bad = 1'>"
  write_study(tmp_path, {"one": {}, "two": {"architecture": "sm", "diverged": True}})
  table = json.loads((tmp_path / "table.json").read_text())
  for row in table["runs"]:
    row |= {"name": row["name"] + nasty, "reason": nasty, "architecture": nasty}
  (tmp_path / "table.json").write_text(json.dumps(table))
  summary = json.loads((tmp_path / "two" / "seed0" / "summary.json").read_text())
  summary["divergence"]["text"] = nasty
  (tmp_path / "two" / "seed0" / "summary.json").write_text(json.dumps(summary))
  tab = visit(page.write(tmp_path).as_uri())
  tab.locator(".runs button").last.click()
  expect(tab.get_by_role("heading", level=1)).to_have_text("two" + nasty)
  expect(tab.locator("#divergence")).to_contain_text(nasty)
  tab.locator("#chart-compare").hover()
  assert tab.evaluate("window.bad") is None


def test_a_watched_run_is_followed(tmp_path, visit, monkeypatch):
  monkeypatch.setattr(watch, "SECONDS", 0.1)
  config = write_run(tmp_path, finished=False)
  ready, stop, address = threading.Event(), threading.Event(), []

  def on_ready(url):
    address.append(url)
    ready.set()

  thread = threading.Thread(
    target=watch.serve, args=(tmp_path, tmp_path / "report.html"), kwargs={"on_ready": on_ready, "stop": stop}
  )
  thread.start()
  try:
    assert ready.wait(60)
    tab = visit(address[0])
    expect(tab.locator("#step-shown")).to_have_text("step 200 of 200")
    tab.wait_for_timeout(2500)  # it has asked for the version once
    with (tmp_path / "metrics.jsonl").open("a") as file:
      file.write(json.dumps(metrics.to_json({"kind": "train", "step": 210, **record(config, 20, 20)})) + "\n")
    expect(tab.locator("#step-shown")).to_have_text("step 210 of 210", timeout=PATIENCE)
    follow = tab.get_by_role("button", name="Follow the run")
    follow.click()
    expect(follow).to_have_attribute("aria-pressed", "false")
    for path, status in (("version", 200), ("metrics.jsonl", 404), ("../table.json", 404)):
      assert tab.request.get(f"{address[0]}{path}").status == status
    assert tab.request.get(address[0], headers={"Host": "elsewhere.example"}).status == 403
    with contextlib.suppress(OSError):
      assert "step" in (tmp_path / "report.html").read_text()
  finally:
    stop.set()
    thread.join(60)
  assert not thread.is_alive()


def test_a_step_of_a_large_model_is_quick(tmp_path, visit):
  """Prints how long one step of the slider takes: no machine's speed is a property of the page."""
  write_run(tmp_path, layers=12, heads=12, records=700)
  path = page.write(tmp_path)
  assert path.stat().st_size < 3e6
  tab = visit(path.as_uri())
  milliseconds = tab.evaluate(
    """async () => {
      const slider = document.getElementById("step"), took = [];
      for (let at = 0; at < 700; at += 35) {
        const start = performance.now();
        slider.value = at;
        slider.dispatchEvent(new Event("input"));
        document.body.getBoundingClientRect();
        took.push(performance.now() - start);
        await new Promise(requestAnimationFrame);
      }
      return took;
    }"""
  )
  print(f"\na step of the slider: median {np.median(milliseconds):.1f} ms, longest {max(milliseconds):.1f} ms")
  expect(tab.locator("#step-shown")).to_have_text(f"step {10 * (665 + 1):,} of 7,000")
