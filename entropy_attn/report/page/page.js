// What moves in the report. All text from runs goes through textContent: nothing of it is ever read as markup.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { run: 0, at: 0, layer: 0, head: 0, a: 0, b: 1 };

// --- numbers ---------------------------------------------------------------------------------------------------------

/** A packed series as value(record, head): see series.pack. */
const unpacked = new WeakMap();
function series(packed) {
  if (!packed) return null;
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.codes), (c) => c.charCodeAt(0));
    const codes = new Uint16Array(bytes.buffer), n = packed.low.length;
    unpacked.set(packed, (at, i) => {
      const code = codes[at * n + i];
      return code === 65535 ? null : packed.low[i] + (code * (packed.high[i] - packed.low[i])) / 65534;
    });
  }
  return unpacked.get(packed);
}
const count = (n) => n.toLocaleString("en-US");
const plain = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(4))));
const nats = (x) => (x === null ? "not finite" : `${x.toFixed(2)} nats`);
function seconds(x) {
  if (x < 120) return `${x < 10 ? x.toFixed(1) : x.toFixed(0)} s`;
  return x < 7200 ? `${(x / 60).toFixed(1)} min` : `${(x / 3600).toFixed(1)} h`;
}
function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(0)} kB`;
}
/** 0 … 3, the quarter of Max in which an entropy lies; null where it is not finite. */
const binOf = (x, max) => (x === null ? null : x > 0 ? Math.min(3, [1, 2, 3].filter((k) => x >= (max * k) / 4).length) : 0);
const entropies = (run, at) => Array.from({ length: run.layers * run.heads }, (_, i) => series(run.entropy)(at, i));
/** The last record up to a step. */
const recordAt = (run, step) => Math.max(0, run.steps.findLastIndex((s) => s <= step));

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// --- heatmap ---------------------------------------------------------------------------------------------------------

function paint(value, max) {
  const colors = DATA.colors, i = Math.round((Math.min(Math.max(value / max, 0), 1)) * (colors.length - 1));
  return { background: colors[i], color: DATA.inks[i] };
}

/** A table of cells, one a head: buttons where they can be chosen. Returns the cells in the order of the heads. */
function buildMap(place, run, label, choose) {
  const table = make("table", { className: `map ${run.heads > 16 ? "many" : run.heads > 6 ? "some" : "few"}` });
  table.setAttribute("aria-label", label);
  const top = make("tr", {}, make("td", { className: "corner" }));
  const every = Math.ceil(run.heads / 16);
  for (let h = 0; h < run.heads; h++) {
    top.append(make("th", { scope: "col", textContent: h % every ? "" : String(h), ariaLabel: `head ${h}` }));
  }
  const body = make("tbody"), cells = [];
  for (let l = 0; l < run.layers; l++) {
    const row = make("tr", {}, make("th", { scope: "row", textContent: String(l), ariaLabel: `layer ${l}` }));
    for (let h = 0; h < run.heads; h++) {
      const cell = make(choose ? "button" : "div", { className: "cell" }, make("span"));
      if (choose) Object.assign(cell, { type: "button", tabIndex: -1 });
      cells.push(cell);
      row.append(make("td", {}, cell));
    }
    body.append(row);
  }
  table.append(make("thead", {}, top), body);
  table.style.setProperty("--cell", `${Math.max(18, Math.min(choose ? 60 : 44, (choose ? 520 : 360) / run.layers))}px`);
  place.replaceChildren(table);
  if (choose) listenToMap(table, run, cells, choose);
  return cells;
}

function listenToMap(table, run, cells, choose) {
  const indexOf = (event) => cells.indexOf(event.target.closest(".cell"));
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -run.heads, ArrowDown: run.heads };
  table.addEventListener("click", (event) => indexOf(event) >= 0 && choose(indexOf(event), true));
  table.addEventListener("mouseover", (event) => indexOf(event) >= 0 && read(indexOf(event)));
  table.addEventListener("mouseleave", () => read(null));
  table.addEventListener("focusin", (event) => {
    const i = indexOf(event);
    if (i < 0) return;
    cells.forEach((cell, j) => (cell.tabIndex = j === i ? 0 : -1));
    read(i);
  });
  table.addEventListener("focusout", () => read(null));
  table.addEventListener("keydown", (event) => {
    const i = indexOf(event), column = i % run.heads;
    let to = event.key === "Home" ? i - column : event.key === "End" ? i - column + run.heads - 1 : i + moves[event.key];
    if ((event.key === "ArrowLeft" && column === 0) || (event.key === "ArrowRight" && column === run.heads - 1)) to = i;
    if (Number.isNaN(to) || !cells[to]) return;
    event.preventDefault();
    cells[to].focus();
  });
}

/** Colours and texts of a map's cells at a record; those that did not change stay as they are. */
function fillMap(cells, run, at) {
  const values = entropies(run, at);
  cells.forEach((cell, i) => {
    const value = values[i], bin = binOf(value, run.max), text = value === null ? "nan" : value.toFixed(2);
    const { background, color } = value === null ? { background: "", color: "" } : paint(value, run.max);
    if (cell.dataset.background !== background || cell.dataset.text !== text) {
      cell.style.background = background;
      cell.style.color = color;
      cell.dataset.background = background;
      cell.dataset.text = text;
      cell.classList.toggle("lost", value === null);
      cell.dataset.bin = bin === null ? "" : bin;
      cell.firstChild.textContent = text;
    }
    if (cell.tagName === "BUTTON") cell.ariaLabel = `Layer ${Math.floor(i / run.heads)}, head ${i % run.heads}: ${nats(value)}`;
  });
}

// --- charts ----------------------------------------------------------------------------------------------------------

class Chart {
  constructor(id, name = id) {
    this.place = $(`chart-${id}`);
    this.name = name;
    this.cursor = make("div", { className: "cursor", ariaHidden: "true" });
    this.step = null;
    Chart.all.push(this);
  }
  /** Shows rows by the name of their data set; draws the chart where it is not there yet. */
  async show(datasets, step = null) {
    this.datasets = datasets;
    this.step = step;
    if (!window.vegaEmbed) return void (this.place.textContent = "This browser cannot draw the chart.");
    if (this.drawing) await this.drawing;
    if (datasets !== this.datasets) return; // newer ones came meanwhile
    if (!this.view) return void (await (this.drawing = this.draw()));
    if (this.height() !== this.drawn) return void (await (this.drawing = this.again()));
    for (const [name, rows] of Object.entries(datasets)) this.view.data(name, rows);
    await (this.drawing = this.view.runAsync());
    this.move(this.step);
  }
  /** Of bars, as many as there are; the other charts have theirs. */
  height() {
    return this.name === "cost" ? 20 * new Set(this.datasets.table.map((row) => row.operation)).size : null;
  }
  async draw() {
    const theme = dark.matches ? "dark" : "light", spec = structuredClone(DATA.specs[this.name]);
    this.drawn = this.height();
    if (this.drawn) spec.height = this.drawn;
    for (const parameter of spec.params) parameter.value = DATA.palette[theme][parameter.name];
    const options = { mode: "vega-lite", actions: false, ast: true, renderer: "svg", defaultStyle: false, logLevel: 1 };
    const drawn = await window.vegaEmbed(this.place, { ...spec, datasets: this.datasets }, { ...options, config: DATA.themes[theme] });
    this.view = drawn.view;
    this.place.append(this.cursor);
    this.view.addResizeListener(() => this.move(this.step));
    this.move(this.step);
  }
  /** Puts the line of the slider's step into the chart: no chart is drawn anew for it. */
  move(step) {
    this.step = step;
    this.cursor.hidden = step === null || !this.view;
    if (this.cursor.hidden) return;
    const [x, y] = this.view.origin();
    this.cursor.style.left = `${x + this.view.scale("x")(step)}px`;
    this.cursor.style.top = `${y}px`;
    this.cursor.style.height = `${this.view.height()}px`;
  }
  async again() {
    if (!this.view) return;
    this.view.finalize();
    this.view = null;
    await this.draw();
  }
}
Chart.all = [];
const charts = {};
for (const id of ["loss", "layers", "shares", "head", "temperature", "share", "compare"]) charts[id] = new Chart(id);
for (const id of ["online", "offline"]) charts[id] = new Chart(id, "cost");
dark.addEventListener("change", () => Chart.all.forEach((chart) => chart.again()));

const losses = (rows) => rows.map(([step, value]) => ({ step, value }));
const marks = (run) => (run.divergence ? [{ step: run.divergence.step, text: "diverged" }] : []);

function drawRun(run) {
  const step = run.steps[state.at], table = [], shares = [];
  const kept = run.steps.map((_, at) => at).filter((at) => at % Math.ceil(run.steps.length / 120) === 0 || at === run.steps.length - 1);
  run.steps.forEach((step, at) => {
    const values = entropies(run, at);
    for (let l = 0; l < run.layers; l++) {
      const of = values.slice(l * run.heads, (l + 1) * run.heads);
      table.push({ step, layer: l, entropy: of.includes(null) ? null : of.reduce((a, b) => a + b, 0) / run.heads });
    }
  });
  kept.forEach((at, k) => {
    const values = entropies(run, at);
    const until = run.steps[kept[k + 1] ?? at] + (k + 1 < kept.length ? 0 : run.steps[at] - run.steps[kept[k - 1] ?? at]);
    let low = 0;
    DATA.bins.forEach((bin, k) => {
      const share = values.filter((value) => binOf(value, run.max) === k).length / values.length;
      if (share) shares.push({ step: run.steps[at], until, bin, share, low, high: low + share });
      low += share;
    });
  });
  charts.loss.show({ train: losses(run.train), eval: losses(run.eval), mark: marks(run) }, step);
  charts.layers.show({ table, ceiling: [{ entropy: run.ceiling, text: "causal ceiling" }], mark: marks(run) }, step);
  charts.shares.show({ table: shares, mark: marks(run) }, step);
}

// --- the run, the step, the head -------------------------------------------------------------------------------------

let cells = [], sides = {};
const shown = () => DATA.runs[state.run];

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, i) => make("option", { value: String(i), textContent: name })));
  select.value = String(chosen);
}

function showRun(index, at = null) {
  stop();
  state.run = index;
  const run = shown();
  state.at = at ?? run.steps.length - 1;
  if (state.layer >= run.layers) state.layer = 0;
  if (state.head >= run.heads) state.head = 0;
  $("run").value = String(index);
  $("name").textContent = run.name;
  $("architecture").textContent = run.architecture;
  $("verdict").replaceChildren(...run.verdict.map(([what, figure, remark]) =>
    make("div", {}, make("dt", { textContent: what }), make("dd", { textContent: figure }), make("dd", { className: "remark", textContent: remark }))));
  $("divergence").hidden = !run.divergence;
  $("divergence-text").textContent = run.divergence?.text ?? "";
  $("ceiling").textContent = `${run.ceiling.toFixed(2)} nats`;
  $("step").max = String(run.steps.length - 1);
  const few = run.steps.length < run.recorded;
  $("thinned").textContent = few ? `Of ${count(run.recorded)} records, ${count(run.steps.length)} evenly spaced ones are kept for the heads; metrics.jsonl has all.` : "";
  $("layers-note").textContent = `The mean over each layer's heads, on ${run.source}.`;
  $("shares-note").textContent = `Shares of the ${run.layers * run.heads} heads by quarter of Max, ${run.max.toFixed(2)} nats${DATA.kind === "study" ? ", one for all runs" : ""}.`;
  cells = buildMap($("map"), run, "Entropy of each head: layers downwards, heads to the right", choose);
  cells[state.layer * run.heads + state.head].tabIndex = 0;
  options($("layer"), Array.from({ length: run.layers }, (_, l) => String(l)), state.layer);
  options($("head"), Array.from({ length: run.heads }, (_, h) => String(h)), state.head);
  for (const row of document.querySelectorAll(".runs tr[data-run]")) row.ariaCurrent = String(Number(row.dataset.run) === index);
  $("config").replaceChildren(make("tbody", {}, ...Object.entries(run.config).map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: value })))));
  showStep(state.at);
  showHead();
  drawRun(run);
  showPrivate(run);
}

/** "0–3, 7" of [0, 1, 2, 3, 7]. */
function ranges(numbers) {
  const found = [];
  for (const n of numbers) {
    if (found.length && found.at(-1)[1] === n - 1) found.at(-1)[1] = n;
    else found.push([n, n]);
  }
  return found.map(([from, to]) => (from === to ? from : to === from + 1 ? `${from}, ${to}` : `${from}–${to}`)).join(", ");
}

function named(values, run, bin, singular, plural, none) {
  const found = values.map((value, i) => (binOf(value, run.max) === bin ? i : -1)).filter((i) => i >= 0);
  if (!found.length) return none;
  const layers = new Map();
  for (const i of found) layers.set(Math.floor(i / run.heads), [...(layers.get(Math.floor(i / run.heads)) ?? []), i % run.heads]);
  const where = [...layers].map(([l, heads]) =>
    heads.length === run.heads ? `all of layer ${l}` : `layer ${l}: ${heads.length > 1 ? "heads" : "head"} ${ranges(heads)}`);
  return `${found.length} of ${values.length} ${found.length === 1 ? singular : plural}: ${where.join("; ")}.`;
}

function showStep(at) {
  state.at = at;
  const run = shown(), step = run.steps[at], values = entropies(run, at), slider = $("step");
  slider.value = String(at);
  slider.setAttribute("aria-valuetext", `step ${step}`);
  $("step-shown").textContent = `step ${count(step)} of ${count(run.steps.at(-1))}`;
  fillMap(cells, run, at);
  $("collapsed").textContent = named(values, run, 0, "heads has collapsed", "heads have collapsed", "No head has collapsed at this step.");
  $("broken").textContent = named(values, run, null, "heads is not finite", "heads are not finite", "");
  $("overloaded").textContent = named(values, run, 3, "heads is overloaded", "heads are overloaded", "No head is overloaded at this step.");
  read(null);
  showFigures();
  for (const chart of [charts.loss, charts.layers, charts.shares, charts.head, charts.temperature, charts.share]) chart.move(step);
  if (sides.a) ["a", "b"].forEach((side) => fillSide(side, step));
  remember();
}

function describe(i) {
  const run = shown(), value = series(run.entropy)(state.at, i);
  const part = value === null ? "" : `, ${((100 * value) / run.max).toFixed(0)} % of Max`;
  return `Layer ${Math.floor(i / run.heads)}, head ${i % run.heads}: ${nats(value)}${part}`;
}

/** Says the value under the pointer or the focus, else that of the chosen head. */
function read(i) {
  const focused = cells.indexOf(document.activeElement);
  $("reading").textContent = describe(i ?? (focused >= 0 ? focused : state.layer * shown().heads + state.head));
}

function choose(i, opened = false) {
  const heads = shown().heads;
  state.layer = Math.floor(i / heads);
  state.head = i % heads;
  showHead();
  if (opened && matchMedia("(max-width: 860px)").matches) $("head-panel").scrollIntoView({ block: "start" });
}

function showHead() {
  const run = shown(), i = state.layer * run.heads + state.head;
  cells.forEach((cell, j) => {
    cell.classList.toggle("chosen", j === i);
    cell.ariaPressed = String(j === i);
  });
  $("layer").value = String(state.layer);
  $("head").value = String(state.head);
  $("head-title").textContent = `Layer ${state.layer}, head ${state.head}`;
  const entropy = series(run.entropy), threshold = series(run.thresholds), p = run.penalty;
  const table = run.steps.map((step, at) => {
    const row = { step, entropy: entropy(at, i) };
    if (p) {
      row.threshold = threshold(at, i) * p.largest;
      row.low = p.sides === "both" ? row.threshold - p.gamma * p.largest : 0;
      row.high = row.threshold + p.gamma * p.largest;
    }
    return row;
  });
  const step = run.steps[state.at];
  charts.head.show({ table, mark: marks(run) }, step);
  for (const name of ["temperature", "share"]) {
    const of = series(run[name]);
    charts[name].place.hidden = !of;
    if (of) charts[name].show({ table: run.steps.map((step, at) => ({ step, value: of(at, i) })) }, step);
  }
  const notes = [];
  if (!run.temperature) notes.push("This model has no learned temperature.");
  if (p) {
    notes.push("Dashed: the threshold θ × E_max; shaded: what costs nothing.");
    const exact = "Its share of the penalty is that of the heads' mean entropies";
    notes.push(p.reduction === "head_mean" ? `${exact} over the batch.` : `${exact}; training penalises each query's.`);
  } else notes.push("This model has no regulariser, so neither threshold nor penalty.");
  $("head-note").textContent = notes.join(" ");
  showFigures();
  read(null);
  remember();
}

function showFigures() {
  const run = shown(), i = state.layer * run.heads + state.head, at = state.at, p = run.penalty;
  const figures = [["Entropy", nats(series(run.entropy)(at, i))]];
  if (p) figures.push(["Threshold", `${plain(series(run.thresholds)(at, i) * p.largest)} nats`]);
  if (run.temperature) figures.push(["Temperature", plain(series(run.temperature)(at, i))]);
  if (p) figures.push(["Share of the penalty", `${plain(100 * series(run.share)(at, i))} %`]);
  $("head-figures").replaceChildren(...figures.map(([what, figure]) => make("div", {}, make("dt", { textContent: what }), make("dd", { textContent: figure }))));
}

let playing = null;
function stop() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "Play";
  $("play").ariaPressed = "false";
}
$("play").addEventListener("click", () => {
  if (playing) return stop();
  const last = shown().steps.length - 1, stride = Math.max(1, Math.ceil(last / 120));
  if (state.at === last) showStep(0);
  $("play").textContent = "Pause";
  $("play").ariaPressed = "true";
  playing = setInterval(() => {
    showStep(Math.min(state.at + stride, last));
    if (state.at === last) stop();
  }, 80);
});
$("step").addEventListener("input", () => {
  stop();
  showStep(Number($("step").value));
});
for (const name of ["layer", "head"]) $(name).addEventListener("change", () => choose(Number($("layer").value) * shown().heads + Number($("head").value)));
$("run").addEventListener("change", () => showRun(Number($("run").value)));
for (const button of document.querySelectorAll(".runs button")) {
  button.addEventListener("click", () => showRun(Number(button.closest("tr").dataset.run)));
}
