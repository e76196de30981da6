// What moves in the page of a text: the head, and the tokens shaded by it.
const state = { layer: 0, head: 0, token: 0 };
const marked = (text) => JSON.stringify(text);
const chosen = () => state.layer * DATA.heads + state.head;
const entropy = (i) => series(DATA.entropy)(0, i);
const own = (n) => series(DATA.own)(n, chosen());
const ceiling = (n) => Math.log(DATA.positions[n] + 1);

// --- heads -----------------------------------------------------------------------------------------------------------

const label = (i) => `Layer ${Math.floor(i / DATA.heads)}, head ${i % DATA.heads}`;
/** Says the value under the pointer or the focus, else that of the chosen head. */
function read(i) {
  const focused = cells.indexOf(document.activeElement), of = i ?? (focused >= 0 ? focused : chosen()), value = entropy(of);
  $("reading").textContent = `${label(of)}: ${nats(value)}${value === null ? "" : `, ${((100 * value) / DATA.max).toFixed(0)} % of Max`}`;
}

function choose(i) {
  state.layer = Math.floor(i / DATA.heads);
  state.head = i % DATA.heads;
  cells.forEach((cell, j) => {
    cell.classList.toggle("chosen", j === i);
    cell.ariaPressed = String(j === i);
  });
  $("layer").value = String(state.layer);
  $("head").value = String(state.head);
  $("head-title").textContent = label(i);
  showProfile(i);
  shade();
  read(null);
  try {
    history.replaceState(null, "", `#head=${state.layer}.${state.head}`);
  } catch {
    // within another page, such as a notebook, there is no address to keep it in
  }
}

function showProfile(i) {
  const head = make("tr", {}, ...["reads", "mean entropy of its ceiling, nats"].map((text, k) =>
    Object.assign(make("th", { scope: "col", textContent: text }), { colSpan: k + 1 })));
  const rows = DATA.profile.map(({ first, last, ceiling, of }) => {
    const bar = make("div", { className: "meter", ariaHidden: "true" }, make("i"));
    bar.firstChild.style.width = `${(100 * (of[i] ?? 0)) / ceiling}%`;
    const text = `${of[i] === null ? "nan" : of[i].toFixed(2)} of ${ceiling.toFixed(2)}`;
    return make("tr", {}, make("th", { scope: "row", textContent: first === last ? String(first) : `${first}–${last}` }),
      make("td", {}, bar), make("td", { className: "number", textContent: text }));
  });
  $("profile").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

// --- tokens ----------------------------------------------------------------------------------------------------------

/** A token as an element: line ends have a mark, and so has one that adds no character of its own. */
function token(text) {
  const node = make("span", { className: "token" });
  if (!text) node.append(make("i", { className: "within" }));
  text.split("\n").forEach((line, k) => {
    if (k) node.append(make("i", { className: "end" }), "\n");
    if (line) node.append(line);
  });
  return node;
}

/** Colours every token by the chosen head; where a row reads one token alone, or nothing finite, it has no colour. */
function shade() {
  const part = $("shade").value === "part";
  tokens.forEach((node, n) => {
    const value = own(n), blank = value !== null && part && DATA.positions[n] === 0;
    const look = value === null || blank ? { background: "", color: "" } : part ? paint(value / ceiling(n), 1) : paint(value, DATA.max);
    node.style.background = look.background;
    node.style.color = look.color;
    node.classList.toggle("lost", value === null);
  });
  say(state.token);
}

function say(n) {
  const value = own(n), of = DATA.positions[n] + 1;
  const reads = of === 1 ? "it reads itself alone" : `it reads ${count(of)} tokens: at most ${ceiling(n).toFixed(2)} nats`;
  $("token").textContent = `Token ${count(n + 1)} ${marked(DATA.strings[n])}: ${nats(value)}; ${reads}.`;
}

function go(n) {
  tokens[state.token].classList.remove("current");
  state.token = n;
  tokens[n].classList.add("current");
  tokens[n].scrollIntoView({ block: "nearest" });
  say(n);
}

const cells = buildMap($("map"), DATA, "Entropy of each head on this text: layers downwards, heads to the right", choose);
const tokens = DATA.strings.map(token);
const index = new Map(tokens.map((node, n) => [node, n]));
const tokenOf = (event) => index.get(event.target.closest(".token"));
$("tokens").append(...tokens);
$("tokens").addEventListener("mouseover", (event) => tokenOf(event) !== undefined && say(tokenOf(event)));
$("tokens").addEventListener("mouseleave", () => say(state.token));
$("tokens").addEventListener("click", (event) => tokenOf(event) !== undefined && go(tokenOf(event)));
$("tokens").addEventListener("keydown", (event) => {
  const to = { ArrowLeft: state.token - 1, ArrowRight: state.token + 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (tokens[to]) go(to);
});
$("shade").addEventListener("change", shade);

document.documentElement.classList.remove("still");
showRamp();
fillMap(cells, DATA, 0);
const all = entropies(DATA, 0);
$("collapsed").textContent = named(all, DATA, 0, "heads has collapsed", "heads have collapsed", "No head has collapsed on this text.");
$("overloaded").textContent = named(all, DATA, 3, "heads is overloaded", "heads are overloaded", "No head is overloaded on this text.");
$("broken").textContent = named(all, DATA, null, "heads is not finite", "heads are not finite", "");
$("shown").textContent = DATA.strings.length < DATA.tokens ? `The first ${count(DATA.strings.length)} of ${count(DATA.tokens)} tokens.` : `All ${count(DATA.tokens)} tokens.`;
options($("layer"), Array.from({ length: DATA.layers }, (_, l) => String(l)), 0);
options($("head"), Array.from({ length: DATA.heads }, (_, h) => String(h)), 0);
for (const name of ["layer", "head"]) $(name).addEventListener("change", () => choose(Number($("layer").value) * DATA.heads + Number($("head").value)));
tokens[0].classList.add("current");
const [layer, head] = (new URLSearchParams(location.hash.slice(1)).get("head") ?? "").split(".").map(Number);
const first = layer < DATA.layers && head < DATA.heads ? layer * DATA.heads + head : 0;
cells[first].tabIndex = 0;
choose(first);
