// What moves in the report: charts, the run, the step, the head.
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { run: 0, at: 0, layer: 0, head: 0, a: 0, b: 1 };
function seconds(x) {
  if (x < 120) return `${x < 10 ? x.toFixed(1) : x.toFixed(0)} s`;
  return x < 7200 ? `${(x / 60).toFixed(1)} min` : `${(x / 3600).toFixed(1)} h`;
}
function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(0)} kB`;
}
/** The last record up to a step. */
const recordAt = (run, step) => Math.max(0, run.steps.findLastIndex((s) => s <= step));

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
