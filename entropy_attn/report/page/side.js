// Two runs side by side, the private cost, and what is kept over a reload.

// --- comparison ------------------------------------------------------------------------------------------------------

function fillSide(side, step) {
  const run = DATA.runs[state[side]], at = recordAt(run, step);
  fillMap(sides[side], run, at);
  const quality = `${run.verdict[0][0]} ${run.verdict[0][1]}`;
  $(`caption-${side}`).textContent = `${run.name} · ${run.architecture} · ${quality} · at step ${count(run.steps[at])}`;
}

function showComparison() {
  const runs = [DATA.runs[state.a], DATA.runs[state.b]];
  for (const [k, side] of ["a", "b"].entries()) {
    sides[side] = buildMap($(`map-${side}`), runs[k], `Entropy of each head of ${runs[k].name}`, null);
    fillSide(side, shown().steps[state.at]);
  }
  const rows = runs.map((run, k) => run.train.map(([step, loss]) => ({ step, value: loss, run: `${"AB"[k]}: ${run.name}` })));
  charts.compare.show({ table: rows.flat() });
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.config)))].sort();
  const differing = names.filter((name) => runs[0].config[name] !== runs[1].config[name]);
  const line = (cell, texts) => make("tr", {}, ...texts.map((text, i) => (i ? make(cell, { textContent: text }) : make("th", { scope: "row", textContent: text }))));
  const facts = runs[0].verdict.map(([what, figure], i) => line("td", [what, figure, runs[1].verdict[i][1]]));
  const fields = differing.map((name) => line("td", [name, runs[0].config[name] ?? "–", runs[1].config[name] ?? "–"]));
  const head = make("tr", {}, ...["", runs[0].name, runs[1].name].map((text) => (text ? make("th", { scope: "col", textContent: text }) : make("td"))));
  const said = differing.length ? `${differing.length} field${differing.length === 1 ? "" : "s"} of the configuration differ${differing.length === 1 ? "s" : ""}.` : "The configurations are the same.";
  $("differences").replaceChildren(
    make("p", { className: "note", textContent: said }),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...facts, ...fields)),
  );
  remember();
}
for (const side of ["a", "b"]) {
  $(`run-${side}`).addEventListener("change", () => {
    state[side] = Number($(`run-${side}`).value);
    showComparison();
  });
}

// --- private cost ----------------------------------------------------------------------------------------------------

const BANDWIDTHS = [1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10000];
const ROUND_TRIPS = [0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 120, 200, 300];
$("bandwidth").max = String(BANDWIDTHS.length - 1);
$("rtt").max = String(ROUND_TRIPS.length - 1);

/** Bytes of the session's keys on so many threads: from two on they grow evenly. */
const keyBytes = ([one, two, three], threads) => (threads < 2 ? one : two + (three - two) * (threads - 2));

/** Seconds of each operation of a phase, in three parts. */
function latencies(cost, phase, megabits, rtt, threads) {
  return Object.entries(cost[phase]).map(([operation, [bytes, rounds, computed]]) => {
    const keys = operation === "setup";
    const sent = keys ? bytes + keyBytes(cost.keys, threads) - keyBytes(cost.keys, cost.threads) : bytes;
    return { operation, bytes: sent, rounds, line: (sent * 8e-6) / megabits, trips: (rounds * rtt) / 1e3, computed: keys ? computed : (computed * cost.threads) / threads };
  });
}

function showPrivate(run) {
  const cost = run.private, reason = cost.reason;
  $("private").hidden = Boolean(reason);
  $("private-source").textContent = reason ? `No price: ${reason}` : `Two parties, one with the weights and one with the prompt; ${cost.source}.`;
  if (reason) return;
  const megabits = BANDWIDTHS[Number($("bandwidth").value)], rtt = ROUND_TRIPS[Number($("rtt").value)], threads = Number($("threads").value);
  const said = { bandwidth: `${count(megabits)} Mbit/s`, rtt: `${rtt} ms`, threads: String(threads) };
  for (const [name, text] of Object.entries(said)) {
    $(`${name}-shown`).textContent = text;
    $(name).setAttribute("aria-valuetext", text);
  }
  const rows = [];
  for (const phase of ["online", "offline"]) {
    const found = latencies(cost, phase, megabits, rtt, threads);
    const total = (name) => found.reduce((sum, of) => sum + of[name], 0);
    $(phase).textContent = seconds(total("line") + total("trips") + total("computed"));
    $(`${phase}-size`).textContent = `${size(total("bytes"))} both ways, ${count(Math.round(total("rounds")))} rounds`;
    const parts = { "bytes on the line": "line", "round trips": "trips", computation: "computed" };
    const table = found.flatMap((of) => Object.entries(parts).map(([part, name], order) => ({ operation: of.operation, part, order, seconds: of[name] })));
    charts[phase].show({ table });
    for (const of of found) rows.push([`${of.operation}, ${phase === "online" ? "with the prompt" : "before"}`, size(of.bytes), count(Math.round(of.rounds)), seconds(of.line + of.trips + of.computed)]);
  }
  const head = ["operation", "bytes", "rounds", "latency"].map((text, i) => make("th", { scope: "col", className: i ? "number" : "", textContent: text }));
  const cell = (text, i) => i ? make("td", { className: "number", textContent: text }) : make("th", { scope: "row", textContent: text });
  $("operations").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell)))));
}
const setLine = (megabits, rtt) => {
  $("bandwidth").value = String(BANDWIDTHS.indexOf(megabits));
  $("rtt").value = String(ROUND_TRIPS.indexOf(rtt));
};
for (const name of ["bandwidth", "rtt", "threads"]) $(name).addEventListener("input", () => showPrivate(shown()));
for (const [name, [megabits, rtt]] of Object.entries(DATA.lines)) {
  const button = make("button", { type: "button", textContent: `${name}: ${count(megabits)} Mbit/s, ${rtt} ms` });
  button.addEventListener("click", () => {
    setLine(megabits, rtt);
    showPrivate(shown());
  });
  $("presets").append(button);
}

// --- what is kept over a reload --------------------------------------------------------------------------------------

let started = false;
function remember() {
  if (!started) return;
  const run = shown(), kept = new URLSearchParams({ run: run.name, head: `${state.layer}.${state.head}` });
  if (state.at < run.steps.length - 1) kept.set("step", run.steps[state.at]); // at the end one follows the run
  if (sides.a) kept.set("compare", [state.a, state.b].map((i) => DATA.runs[i].name).join("\n"));
  try {
    history.replaceState(null, "", `#${kept}`);
  } catch {
    // within another page, such as a notebook, there is no address to keep it in
  }
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1)), index = (name) => DATA.runs.findIndex((run) => run.name === name);
  const [layer, head] = (kept.get("head") ?? "").split(".").map(Number);
  if (Number.isInteger(layer) && Number.isInteger(head)) Object.assign(state, { layer, head });
  const [a, b] = (kept.get("compare") ?? "").split("\n").map(index);
  if (a >= 0 && b >= 0) Object.assign(state, { a, b });
  const run = Math.max(0, index(kept.get("run")));
  return [run, kept.has("step") ? recordAt(DATA.runs[run], Number(kept.get("step"))) : null];
}

/** A served page asks for news now and then, and loads itself anew where there is some. */
function followRun() {
  const button = $("follow");
  let version = null;
  button.hidden = false;
  button.addEventListener("click", () => (button.ariaPressed = String(button.ariaPressed !== "true")));
  setInterval(async () => {
    if (button.ariaPressed !== "true" || playing) return;
    const now = await fetch("version").then((answer) => answer.text(), () => version);
    if (version !== null && now !== version) location.reload();
    version = now;
  }, 2000);
}

function legend() {
  const key = (bin, i) => {
    const swatch = make("i");
    swatch.style.background = DATA.binColors[i];
    return make("li", {}, swatch, bin);
  };
  $("keys-shares").replaceChildren(...DATA.bins.map(key));
  showRamp();
}

document.documentElement.classList.remove("still");
legend();
setLine(...Object.values(DATA.lines)[0]);
const names = DATA.runs.map((run) => run.name);
options($("run"), names, 0);
$("choose-run").hidden = names.length < 2;
const [first, at] = recall();
$("threads").value = String(DATA.runs[first].private.threads ?? 2);
showRun(first, at);
if (names.length > 1) {
  $("compare").hidden = false;
  state.b = Math.min(state.b, names.length - 1);
  for (const side of ["a", "b"]) options($(`run-${side}`), names, state[side]);
  showComparison();
}
if (document.documentElement.dataset.served === "yes") followRun();
started = true;
