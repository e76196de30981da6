// What the pages share: numbers, and the heatmap of heads. `read(head or null)`, which says a value, is each page's own.
// All text from outside goes through textContent: nothing of it is ever read as markup.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

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
/** 0 … 3, the quarter of Max in which an entropy lies; null where it is not finite. */
const binOf = (x, max) => (x === null ? null : x > 0 ? Math.min(3, [1, 2, 3].filter((k) => x >= (max * k) / 4).length) : 0);
const entropies = (run, at) => Array.from({ length: run.layers * run.heads }, (_, i) => series(run.entropy)(at, i));
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

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, i) => make("option", { value: String(i), textContent: name })));
  select.value = String(chosen);
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

/** The colour map from 0 to Max, with its ends and the bounds of the outer bins. */
function showRamp() {
  const stops = DATA.colors.filter((_, i) => i % 15 === 0 || i === DATA.colors.length - 1);
  $("ramp").style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  $("ticks").replaceChildren(...["0", "collapsed ▼", "Max/2", "▲ overloaded", "Max"].map((text) => make("span", { textContent: text })));
}
