// Token credit: a list of completions, and one of them under every method, its tokens coloured by their weights, or by
// their advantages under a method without weights.

const PAGE = 50;
// Tokens that are drawn at a time, in every panel; the browser draws and takes keys in between
const CHUNK = 400;
// A block of text is laid out by itself, from one line's start to another's end
const BLOCK = 200;
// Methods that are shown at first
const SHOWN = 4;
// |log2 of the weight| from which a token has the next stronger colour
const LEVELS = [0.1, 0.5, 1, 1.5, 2, 3];
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]|[\ud802\ud803\ud83a\ud83b]/;

const data = readJson("data");
const labels = data.labels;
const completions = data.completions;
completions.forEach((completion, position) => { completion.position = position; });
const groups = [...new Set(completions.map((completion) => completion.group))];

const el = (id) => document.getElementById(id);
const form = el("filters");
const list = el("list");
const panels = el("panels");
const detail = el("detail");

// ---- Numbers and text

function figure(value) {
  if (!Number.isFinite(value)) return MISSING;
  const size = Math.abs(value);
  if (value === 0) return "0";
  const text = size >= 1000 && size < 1e4 ? value.toFixed(0)
    : size >= 1e-3 && size < 1e4 ? String(Number(value.toPrecision(3))) : value.toExponential(2);
  return text.replaceAll("-", "−");
}

// A symbol, a word and a number, so that none has to be told by colour
function direction(advantage) {
  if (!Number.isFinite(advantage)) return `${MISSING} unknown`;
  if (advantage > 0) return `▲ +${figure(advantage)}, positive: made likelier`;
  return advantage < 0 ? `▼ ${figure(advantage)}, negative: made less likely` : "■ 0: no push";
}

function shortDirection(advantage) {
  if (!Number.isFinite(advantage)) return "";
  return advantage > 0 ? `▲ +${figure(advantage)}` : advantage < 0 ? `▼ ${figure(advantage)}` : "■ 0";
}

// A token as it is shown: white space that cannot be seen has a sign, and a line's end keeps its effect
function shown(token) {
  if (token === "") return "∅";
  const blank = /^[ \t\r\n]+$/.test(token);
  const text = blank ? token.replaceAll(" ", "·").replaceAll("\t", "→") : token;
  return text.replaceAll("\r", "␍").replaceAll("\n", "⏎\n");
}

// ---- A completion's data: a line of JSON, then arrays as planes of bytes; see `pack` in credit.py

const texts = new Map(); // the last few that were decoded

async function element(position) {
  for (;;) {
    const node = el(`text-${position}`);
    // What follows it is there, so it is complete: the first one need not wait for the last
    if (node && (node.nextElementSibling || document.readyState !== "loading")) return node;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function read(position) {
  if (texts.has(position)) return texts.get(position);
  const binary = atob((await element(position)).textContent);
  const packed = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) packed[i] = binary.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let from = bytes.indexOf(10);
  const text = JSON.parse(new TextDecoder().decode(bytes.subarray(0, from++)));
  const count = text.tokens.length;
  const array = (Type) => {
    const result = new Uint8Array(4 * count);
    for (let plane = 0; plane < 4; plane++) {
      for (let i = 0; i < count; i++) result[4 * i + plane] = bytes[from++];
    }
    return new Type(result.buffer);
  };
  text.ids = array(Uint32Array);
  text.mask = bytes.subarray(from, from += count);
  text.weights = {};
  text.advantages = {};
  text.signals = {};
  const kinds = { weight: text.weights, advantage: text.advantages, signal: text.signals };
  for (const name of text.arrays) {
    const [kind, ...rest] = name.split("/");
    const values = array(Float32Array);
    if (rest.length) kinds[kind][rest.join("/")] = values;
    else text[kind] = values;
  }
  const { advantage } = completions[position];
  for (const label of text.products) {
    text.advantages[label] = text.weights[label].map((weight, i) => (text.mask[i] ? weight * advantage : 0));
  }
  text.contrasts = Object.fromEntries(Object.keys(text.signals)
    .filter((title) => title.startsWith("negative-prompt log-prob"))
    .map((title) => [title.replace("negative-prompt log-prob", "contrast (negative − policy)"),
      text.signals[title].map((value, i) => value - text.logps[i])]));
  text.order = {};
  if (texts.size >= 8) texts.delete(texts.keys().next().value);
  texts.set(position, text);
  return text;
}

// Masked tokens from the highest weight to the lowest, and every token's rank; equal weights share the better one
function ranked(text, label) {
  if (!text.order[label]) {
    const weights = text.weights[label];
    const order = [...weights.keys()].filter((i) => text.mask[i] && !Number.isNaN(weights[i]));
    order.sort((a, b) => weights[b] - weights[a] || a - b);
    const rank = new Uint32Array(weights.length);
    order.forEach((i, place) => {
      rank[i] = place && weights[order[place - 1]] === weights[i] ? rank[order[place - 1]] : place + 1;
    });
    text.order[label] = { order, rank };
  }
  return text.order[label];
}

// The classes of a token: its colour and its bar
function look(text, label, i) {
  if (!text.mask[i]) return "t off";
  if (!text.weights[label] && text.advantages[label]) return lookOfAdvantage(text.advantages[label][i]);
  const weight = text.weights[label]?.[i];
  if (!(weight >= 0)) return "t unknown";
  const logarithm = Math.log2(weight);
  const level = LEVELS.filter((from) => Math.abs(logarithm) >= from).length;
  const thick = Math.min(8, Math.round(weight));
  return `t ${level ? (logarithm > 0 ? "p" : "n") + level : "z"} b${thick}`;
}

function lookOfAdvantage(advantage) {
  if (!Number.isFinite(advantage)) return "t unknown";
  const level = LEVELS.filter((from) => Math.abs(advantage) >= from).length;
  const thick = Math.min(8, Math.round(Math.abs(advantage)));
  return `t ${level ? (advantage > 0 ? "p" : "n") + level : "z"} b${thick}`;
}

// ---- State

const DEFAULTS = { sort: "", by: "0", group: "", page: "1", c: "", off: labels.slice(SHOWN).map((_, i) => i + SHOWN).join(".") };
let state = { ...DEFAULTS };
let view = []; // the completions that pass the filter, in order
let current = null; // the completion in the reader
let text = null; // its data, once decoded
let drawn = []; // its panels: method, node, spans
let at = 0; // the token with the focus, or to which the focus would go
let pointed = -1; // the token under the pointer
let latest = 0; // the number of the last drawing: an older one stops when it sees a newer

const byOrder = (a, b) => a.position - b.position;
// Unknown values come last, either way
const by = (value, sign) => (a, b) => {
  const [left, right] = [value(a), value(b)];
  if (!Number.isFinite(left) || !Number.isFinite(right)) {
    return Number(!Number.isFinite(left)) - Number(!Number.isFinite(right)) || byOrder(a, b);
  }
  return sign * (left - right) || byOrder(a, b);
};
const concentration = (completion) => completion.concentration[Number(state.by)] ?? NaN;
const ORDERS = {
  "": ["as they came", byOrder],
  reward: ["reward, highest first", by((c) => c.reward ?? NaN, -1)],
  unrewarded: ["reward, lowest first", by((c) => c.reward ?? NaN, 1)],
  advantage: ["advantage, highest first", by((c) => c.advantage ?? NaN, -1)],
  disadvantage: ["advantage, lowest first", by((c) => c.advantage ?? NaN, 1)],
  longest: ["longest first", by((c) => c.tokens, -1)],
  shortest: ["shortest first", by((c) => c.tokens, 1)],
  concentrated: ["most concentrated first", by(concentration, -1)],
  even: ["least concentrated first", by(concentration, 1)],
};

const isOff = (method) => state.off.split(".").includes(String(method));
const shownMethods = () => labels.map((_, method) => method).filter((method) => !isOff(method));

function putControls() {
  putOptions(form.sort, Object.entries(ORDERS).map(([name, [label]]) => [name, label]));
  putOptions(form.by, labels.map((label, method) => [String(method), label]));
  putOptions(form.group, [["", "all"], ...groups.map((group) => [String(group), String(group)])]);
  el("group-label").hidden = groups.length < 2;
  el("by-label").hidden = labels.length < 2;
  for (const [method, label] of labels.entries()) {
    const box = make("input", { type: "checkbox", name: "method", value: String(method) });
    el("methods").append(make("label", {}, box, putText(make("span"), label)));
  }
  el("methods").hidden = labels.length < 2;
}

function setState(change) {
  state = { ...state, ...change };
  if (!Object.hasOwn(ORDERS, state.sort)) state.sort = "";
  if (!(Number(state.by) in labels)) state.by = "0";
  if (!groups.some((group) => String(group) === state.group)) state.group = "";
  for (const name of ["sort", "by", "group"]) form[name].value = state[name];
  for (const box of form.querySelectorAll("[name=method]")) box.checked = !isOff(box.value);
  view = completions.filter((c) => !state.group || String(c.group) === state.group).sort(ORDERS[state.sort][1]);
  current = state.c === "" ? null : view.find((c) => String(c.position) === state.c) ?? null;
  show();
}

const pages = () => Math.max(1, Math.ceil(view.length / PAGE));

function show() {
  const asked = current ? Math.floor(view.indexOf(current) / PAGE) + 1 : Math.floor(Number(state.page)) || 1;
  const page = Math.min(Math.max(asked, 1), pages());
  state.page = String(page);
  const rows = view.slice((page - 1) * PAGE, page * PAGE);
  list.replaceChildren(...rows.map(row));
  if (!rows.length) list.append(make("li", { className: "muted", textContent: "No completion." }));
  el("status").textContent = view.length === completions.length ? plural(view.length, "completion")
    : `${number(view.length)} of ${plural(completions.length, "completion")}`;
  el("page").textContent = `${number(page)} of ${number(pages())}`;
  el("page-back").disabled = page <= 1;
  el("page-on").disabled = page >= pages();
  document.querySelector(".pager").hidden = pages() === 1;
  select(current ?? rows[0] ?? null);
}

function row(completion) {
  const item = make("li", { id: `row-${completion.position}` },
    make("span", { className: "line" },
      make("span", { textContent: `#${completion.position + 1}` + (groups.length > 1 ? ` · group ${completion.group}` : "") }),
      make("span", { textContent: shortDirection(completion.advantage) })),
    make("span", { className: "line muted" },
      make("span", { textContent: `${number(completion.tokens)} tok` }),
      make("span", { textContent: `reward ${figure(completion.reward ?? NaN)}` })),
    putText(make("span", { className: "clip" }), completion.excerpt || "(empty)"));
  item.setAttribute("role", "option");
  return item;
}

function select(completion) {
  const other = completion !== current || !text;
  current = completion;
  state.c = completion ? String(completion.position) : "";
  for (const item of list.children) item.setAttribute("aria-selected", String(item.id === `row-${completion?.position}`));
  const item = completion && el(`row-${completion.position}`);
  if (item) {
    list.setAttribute("aria-activedescendant", item.id);
    // Not scrollIntoView, which would move the page too
    const top = item.offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + item.offsetHeight - list.clientHeight;
  } else {
    list.removeAttribute("aria-activedescendant");
  }
  address.write(state, DEFAULTS);
  if (other) at = 0;
  draw();
}

function move(steps) {
  const from = view.indexOf(current);
  const to = Math.min(Math.max(from + steps, 0), view.length - 1);
  if (!view.length || to === from) return;
  const focused = panels.contains(document.activeElement);
  if (el(`row-${view[to].position}`)) {
    select(view[to]);
  } else {
    current = view[to];
    text = null;
    show();
  }
  // The token that had the focus is gone
  if (focused) list.focus({ preventScroll: true });
}

function turn(steps) {
  const page = Number(state.page) + steps;
  if (page < 1 || page > pages()) return;
  move((page - 1) * PAGE - view.indexOf(current));
}

// ---- The reader

function fact(name, value) {
  el("facts").append(make("div", {}, make("dt", { textContent: name }), putText(make("dd"), value)));
}

async function draw() {
  const run = ++latest;
  const completion = current;
  const place = view.indexOf(completion);
  el("back").disabled = place <= 0;
  el("on").disabled = place < 0 || place >= view.length - 1;
  el("reader-title").textContent = completion ? `Completion ${number(completion.position + 1)}` : "No completion";
  el("facts").replaceChildren();
  el("problem").hidden = true;
  pointed = -1;
  if (!completion) {
    panels.replaceChildren();
    detail.replaceChildren();
    drawn = [];
    return;
  }
  fact("Advantage", direction(completion.advantage ?? NaN));
  fact("Reward", figure(completion.reward ?? NaN));
  fact("Tokens", number(completion.tokens)
    + (completion.masked < completion.tokens ? `, ${number(completion.masked)} of them in the loss` : ""));
  fact("Group", String(completion.group));
  let found;
  try {
    found = await read(completion.position);
  } catch (error) {
    if (run !== latest) return;
    panels.replaceChildren();
    el("problem").textContent = `This browser cannot decode the completion (${error.message}).`;
    el("problem").hidden = false;
    return;
  }
  // Another completion may have been chosen meanwhile
  if (run !== latest) return;
  text = found;
  if (at >= text.tokens.length) at = 0;
  for (const [name, value] of Object.entries(text.info)) {
    fact(name, typeof value === "number" ? figure(value) : typeof value === "string" ? value : JSON.stringify(value));
  }
  putText(document.querySelector("#prompt pre"), text.prompt);

  const methods = shownMethods();
  drawn = methods.map((method) => panel(method, methods.length));
  panels.replaceChildren(...drawn.map(({ node }) => node));
  if (!drawn.length) panels.append(make("p", { className: "muted", textContent: "No method is shown." }));
  if (!completion.tokens) panels.append(make("p", { className: "muted", textContent: "The completion has no tokens." }));
  panels.setAttribute("aria-busy", "true");
  inspect();
  for (let from = 0; from < completion.tokens; from += CHUNK) {
    if (from) await new Promise(requestAnimationFrame);
    if (run !== latest) return;
    append(from, Math.min(from + CHUNK, completion.tokens));
    if (at >= from && at < from + CHUNK) choose(at, false);
  }
  panels.removeAttribute("aria-busy");
}

// True if a method with weights does more than multiply the advantage by them
function added(text, label) {
  return Boolean(text.advantages[label]) && !text.products.includes(label);
}

function panel(method, count) {
  const label = labels[method];
  const head = make("div", { className: "panel-head" }, putText(make("strong"), label));
  const value = current.concentration[method];
  const note = !text.weights[label] ? (text.advantages[label] ? "token advantages" : "no weights here")
    : value === null || value === undefined ? "no usable weights"
    : `effective fraction ${(1 - value).toFixed(value < 0.01 ? 4 : 2)}${added(text, label) ? "; more is added, see a token's advantage" : ""}`;
  head.append(make("span", { className: "muted", textContent: note }));
  const node = make("div", { className: count > 1 ? "tokens" : "tokens alone" });
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", `Tokens under ${label}`);
  // Together the panels take no more than a screen
  node.style.setProperty("--tall", `max(10.8rem, ${Math.round(62 / count)}vh)`);
  const result = { method, label, node: make("div", { className: "panel" }, head, node), box: node, spans: [], block: null, size: 0 };
  node.addEventListener("scroll", () => {
    for (const other of drawn) {
      if (other !== result && other.box.scrollTop !== node.scrollTop) other.box.scrollTop = node.scrollTop;
    }
  }, { passive: true });
  return result;
}

function append(from, to) {
  for (const each of drawn) {
    const fragment = document.createDocumentFragment();
    let block = each.block;
    for (let i = from; i < to; i++) {
      if (!block || (each.size >= BLOCK && text.tokens[i - 1].endsWith("\n"))) {
        block = make("div");
        each.size = 0;
        fragment.append(block);
      }
      const span = make("span", { className: look(text, each.label, i) });
      const token = shown(text.tokens[i]);
      appendVisible(span, token);
      if (RIGHT_TO_LEFT.test(token)) span.classList.add("rtl");
      span.token = i;
      each.spans.push(span);
      block.append(span);
      each.size++;
    }
    each.block = block;
    each.box.append(fragment);
  }
}

// ---- The token pointed at, or else the one that has the focus

function mark(name, i) {
  for (const { spans } of drawn) spans[i]?.classList.add(name);
}

function unmark(name, i) {
  for (const { spans } of drawn) spans[i]?.classList.remove(name);
}

// Makes a token the one to which Tab leads, in all panels
function choose(i, focus, method = null) {
  if (!text || i < 0 || i >= (drawn[0]?.spans.length ?? 0)) return;
  for (const { spans } of drawn) spans[at]?.removeAttribute("tabindex");
  unmark("at", at);
  at = i;
  for (const { spans } of drawn) spans[at].tabIndex = 0;
  mark("at", at);
  if (focus) {
    const each = drawn.find((other) => other.method === method) ?? drawn[0];
    each.spans[at].focus();
  }
  inspect();
}

function point(i) {
  if (i === pointed) return;
  if (pointed >= 0) unmark("here", pointed);
  pointed = i;
  if (pointed >= 0) mark("here", pointed);
  inspect();
}

function inspect() {
  const i = pointed >= 0 ? pointed : at;
  detail.replaceChildren();
  if (!text || i >= text.tokens.length) return;
  const inLoss = text.mask[i] ? "" : ", not in the loss";
  detail.append(make("p", { id: "detail-token" },
    appendedTo(make("code"), shown(text.tokens[i]).replaceAll("⏎\n", "⏎")),
    ` id ${text.ids[i]}, token ${number(i + 1)} of ${number(text.tokens.length)}${inLoss}`));

  const body = make("tbody");
  for (const label of labels) {
    const weights = text.weights[label];
    const { order, rank } = weights ? ranked(text, label) : {};
    const cells = [
      text.mask[i] ? figure(weights?.[i] ?? NaN) : MISSING,
      rank?.[i] ? `${number(rank[i])} of ${number(order.length)}` : MISSING,
      text.mask[i] ? figure(text.advantages[label]?.[i] ?? NaN) : MISSING,
    ];
    const row = make("tr", {}, putText(make("th", { scope: "row" }), label),
      ...cells.map((value) => make("td", { textContent: value })));
    body.append(row);
  }
  const heads = ["method", "weight", "rank", "advantage"].map((name) => make("th", { scope: "col", textContent: name }));
  detail.append(make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));

  const terms = make("dl");
  const values = { "log-prob": text.logps, ...text.signals, ...text.contrasts, entropy: text.entropy };
  for (const [name, array] of Object.entries(values)) {
    terms.append(putText(make("dt"), name), make("dd", { textContent: figure(array[i]) }));
  }
  detail.append(terms);
  detail.toggleAttribute("data-many", labels.length + 1 > 6 || Object.keys(values).length > 6);
}

function appendedTo(node, value) {
  appendVisible(node, value);
  return node;
}

// ---- Events

const tokenOf = (event) => event.target.closest?.(".t")?.token;
const methodOf = (node) => drawn.find(({ box }) => box.contains(node))?.method;

let pointer = "";
panels.addEventListener("pointermove", (event) => {
  // Text that scrolls under a pointer at rest is not pointed at
  const place = `${event.clientX} ${event.clientY}`;
  const i = tokenOf(event);
  if (i !== undefined && place !== pointer) point(i);
  pointer = place;
});
panels.addEventListener("pointerleave", () => point(-1));
panels.addEventListener("click", (event) => {
  const i = tokenOf(event);
  if (i !== undefined) choose(i, true, methodOf(event.target));
});
panels.addEventListener("focusin", (event) => {
  const i = tokenOf(event);
  if (i !== undefined && i !== at) choose(i, false);
});
panels.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || tokenOf(event) === undefined) return;
  const method = methodOf(event.target);
  const place = drawn.findIndex((each) => each.method === method);
  const last = drawn[0].spans.length - 1;
  const to = (i, other = place) => {
    point(-1);
    choose(Math.min(Math.max(i, 0), last), true, drawn[Math.min(Math.max(other, 0), drawn.length - 1)].method);
  };
  const byWeight = (steps) => {
    if (!text.weights[labels[method]]) return;
    const { order } = ranked(text, labels[method]);
    const from = order.indexOf(at);
    const next = order[from < 0 ? 0 : Math.min(Math.max(from + steps, 0), order.length - 1)];
    if (next !== undefined) to(next);
  };
  const actions = {
    ArrowRight: () => to(at + 1), ArrowLeft: () => to(at - 1), Home: () => to(0), End: () => to(last),
    ArrowUp: () => to(at, place - 1), ArrowDown: () => to(at, place + 1), n: () => byWeight(1), p: () => byWeight(-1),
  };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
});

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest?.("select, input:not([type=checkbox]), textarea")) return;
  const inList = event.target === list;
  const actions = { j: () => move(1), k: () => move(-1) };
  if (inList) {
    Object.assign(actions, {
      ArrowDown: () => move(1), ArrowUp: () => move(-1), Home: () => move(-view.length), End: () => move(view.length),
      PageDown: () => turn(1), PageUp: () => turn(-1),
    });
  }
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
});

list.addEventListener("click", (event) => {
  const item = event.target.closest("li[id]");
  if (!item) return;
  select(completions[Number(item.id.slice(4))]);
  // On a narrow screen the reader is below the list
  const reader = el("reader");
  if (reader.getBoundingClientRect().top > list.getBoundingClientRect().bottom) reader.scrollIntoView({ block: "start" });
});
el("back").addEventListener("click", () => move(-1));
el("on").addEventListener("click", () => move(1));
el("page-back").addEventListener("click", () => turn(-1));
el("page-on").addEventListener("click", () => turn(1));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", (event) => {
  if (event.target.name === "method") {
    const off = [...form.querySelectorAll("[name=method]")].filter((box) => !box.checked).map((box) => box.value);
    state.off = off.join(".");
    address.write(state, DEFAULTS);
    draw();
  } else {
    setState({ [event.target.name]: event.target.value, c: "", page: "1" });
  }
});
window.addEventListener("hashchange", () => setState(address.read(DEFAULTS)));

putControls();
setState(address.read(DEFAULTS));
