// The samples browser: filters, a page of rows, and one sample to read.

const PAGE = 50;
// Characters of decoded text to keep; beyond this a search decodes again
const CACHE = 200e6;

const data = readJson("data");
const key = (...parts) => parts.join("/");
const problems = new Map(data.problems.map((problem) => [key(problem.task, problem.problem), problem]));
const samples = data.samples;
for (const [position, sample] of samples.entries()) {
  sample.position = position;
  sample.problemKey = key(sample.task, sample.problem);
  sample.key = key(sample.problemKey, sample.index);
  sample.length = sample.tokens ?? sample.characters;
}

// What can be shown: name, label, test. The kinds overlap: an empty sample is wrong as well.
const KINDS = [
  ["", "all", () => true],
  ["right", "right", (sample) => sample.correct === true],
  ["wrong", "wrong, for any reason", (sample) => sample.correct === false],
  ["answered", "wrong, with an answer", (sample) => sample.correct === false && sample.status === "judged"],
  ["unparsed", "no answer found", (sample) => sample.status === "unparsed"],
  ["empty", "empty", (sample) => sample.status === "empty"],
  ["truncated", "cut off at the token limit", (sample) => sample.finish === "length"],
  ["failed", "verification failed", (sample) => sample.outcome && sample.outcome !== "ok"],
  ["unjudged", "not judged", (sample) => typeof sample.correct !== "boolean"],
];

const byOrder = (a, b) => a.position - b.position;
const ORDERS = {
  "": ["problem, then index", byOrder],
  index: ["index, then problem", (a, b) => a.index - b.index || byOrder(a, b)],
  shortest: ["shortest first", (a, b) => a.length - b.length || byOrder(a, b)],
  longest: ["longest first", (a, b) => b.length - a.length || byOrder(a, b)],
};

// A symbol, a word and a colour, so that none has to be told by colour
function verdict(sample) {
  if (sample.correct === true) return ["✓", "right", "good"];
  // The solution cannot be verified against, so the model is not to blame, whatever its answer
  if (typeof sample.correct !== "boolean") return ["–", "not judged", "muted"];
  if (sample.outcome && sample.outcome !== "ok") return ["!", "verification failed", "bad"];
  if (sample.status === "empty") return ["∅", "empty", "bad"];
  if (sample.status === "unparsed") return ["?", "no answer", "bad"];
  return ["✗", "wrong", "bad"];
}

// ---- Texts: zlib data in base64, each in an element of its own, decoded when needed

const cache = new Map();
let cached = 0;
const parsed = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

async function decode(sample) {
  await parsed;
  const binary = atob(document.getElementById(`text-${sample.position}`).textContent);
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const text = await new Response(stream).text();
  if (!cache.has(sample.position) && cached + text.length <= CACHE) {
    cache.set(sample.position, text);
    cached += text.length;
  }
  return text;
}

async function textOf(sample) {
  return cache.get(sample.position) ?? decode(sample);
}

// ---- State

const DEFAULTS = { task: "", problem: "", show: "", sort: "", q: "", page: "1", sample: "" };
let state = { ...DEFAULTS };
let view = []; // the samples that pass the filters, in order
let current = null; // the sample in the reader
let latest = 0; // the number of the last search: an older one stops when it sees a newer

const form = document.getElementById("filters");
const list = document.getElementById("list");
const reader = document.getElementById("reader");
const statusLine = document.getElementById("status");

function putFilters() {
  const amount = (test) => number(samples.filter(test).length);
  if (form.task) putOptions(form.task, [["", "all"], ...data.tasks.map((task) => [task, task])]);
  const offered = data.problems.filter((problem) => !state.task || problem.task === state.task);
  const label = (problem) => (data.tasks.length > 1 ? `${problem.task} · ${problem.problem}` : String(problem.problem));
  putOptions(form.problem, [["", "all"], ...offered.map((problem) => [key(problem.task, problem.problem), label(problem)])]);
  if (!form.show.options.length) {
    putOptions(form.show, KINDS.map(([name, text, test]) => [name, `${text} (${amount(test)})`]));
    putOptions(form.sort, Object.entries(ORDERS).map(([name, [text]]) => [name, text]));
  }
  for (const control of ["task", "problem", "show", "sort", "q"]) {
    if (form[control] && form[control].value !== state[control]) form[control].value = state[control];
  }
}

// Takes over a state, from the controls or from the address, and drops what it cannot hold
function setState(change) {
  state = { ...state, ...change };
  if (!data.tasks.includes(state.task)) state.task = "";
  const problem = problems.get(state.problem);
  if (!problem || (state.task && problem.task !== state.task)) state.problem = "";
  if (!KINDS.some(([name]) => name === state.show)) state.show = "";
  if (!Object.hasOwn(ORDERS, state.sort)) state.sort = "";
  putFilters();
  return apply();
}

async function apply() {
  const run = ++latest;
  const test = KINDS.find(([name]) => name === state.show)[2];
  const chosen = samples
    .filter((sample) => (!state.task || sample.task === state.task)
      && (!state.problem || sample.problemKey === state.problem) && test(sample))
    .sort(ORDERS[state.sort][1]);
  const pattern = literal(state.q);
  if (!pattern) {
    view = chosen;
  } else {
    const found = [];
    let shown = performance.now();
    list.setAttribute("aria-busy", "true");
    for (let from = 0; from < chosen.length; from += 64) {
      const part = chosen.slice(from, from + 64);
      const texts = await Promise.all(part.map(textOf));
      if (run !== latest) return;
      part.forEach((sample, place) => {
        // search() ignores where a former match of the pattern ended
        if (texts[place].search(pattern) >= 0 || String(sample.answer ?? "").search(pattern) >= 0) found.push(sample);
      });
      // Leave the page time to draw and to take keys
      if (performance.now() - shown > 100) {
        statusLine.textContent = `Searching … ${number(from + part.length)} of ${number(chosen.length)}, ${number(found.length)} found`;
        await new Promise((resolve) => setTimeout(resolve));
        if (run !== latest) return;
        shown = performance.now();
      }
    }
    view = found;
  }
  list.removeAttribute("aria-busy");
  current = view.find((sample) => sample.key === state.sample) ?? null;
  if (!current) state.sample = "";
  show();
}

const pages = () => Math.max(1, Math.ceil(view.length / PAGE));

// Draws the page of the chosen sample, or else the page asked for and its first sample
function show() {
  const asked = current ? Math.floor(view.indexOf(current) / PAGE) + 1 : Math.floor(Number(state.page)) || 1;
  const page = Math.min(Math.max(asked, 1), pages());
  state.page = String(page);
  const rows = view.slice((page - 1) * PAGE, page * PAGE);
  if (!current) current = rows[0] ?? null;
  list.replaceChildren(...rows.map(row));
  if (!rows.length) list.append(make("li", { className: "muted", textContent: "No sample passes the filters." }));
  const right = view.filter((sample) => sample.correct === true).length;
  statusLine.textContent = `${number(view.length)} of ${plural(samples.length, "sample")}, ${number(right)} right`;
  document.getElementById("page").textContent = `${number(page)} of ${number(pages())}`;
  document.getElementById("page-back").disabled = page <= 1;
  document.getElementById("page-on").disabled = page >= pages();
  select(current);
}

function row(sample) {
  const [symbol, word, colour] = verdict(sample);
  const where = data.tasks.length > 1 ? `${sample.task} · ${sample.problem}` : `problem ${sample.problem}`;
  const item = make("li", { id: `sample-${sample.position}` },
    make("span", { className: `symbol ${colour}`, textContent: symbol, ariaHidden: "true" }),
    putText(make("span", { className: "where" }), `${where} · sample ${sample.index}`),
    make("span", { className: "length", textContent: length(sample) }),
    make("span", { className: "sub" },
      putText(make("span", { className: "clip" }), sample.answer),
      make("span", { className: "verdict", textContent: sample.finish === "length" ? `${word}, cut off` : word })));
  item.setAttribute("role", "option");
  item.addEventListener("click", () => {
    choose(sample);
    // On a narrow screen the reader is below the list
    if (reader.offsetTop > list.offsetTop + list.offsetHeight) reader.scrollIntoView({ block: "start" });
  });
  return item;
}

function length(sample) {
  return Number.isFinite(sample.tokens) ? `${number(sample.tokens)} tok` : `${number(sample.characters)} chars`;
}

// The reader's choice, which goes into the address
function choose(sample) {
  const changesPage = !document.getElementById(`sample-${sample.position}`);
  current = sample;
  state.sample = sample.key;
  if (changesPage) show();
  else select(sample);
}

function select(sample) {
  for (const item of list.children) item.setAttribute("aria-selected", String(item.id === `sample-${sample?.position}`));
  const item = sample && document.getElementById(`sample-${sample.position}`);
  if (item) {
    list.setAttribute("aria-activedescendant", item.id);
    // Not scrollIntoView, which would move the page too
    if (item.offsetTop < list.scrollTop + list.offsetTop) list.scrollTop = item.offsetTop - list.offsetTop;
    const below = item.offsetTop + item.offsetHeight - list.offsetTop - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
  } else {
    list.removeAttribute("aria-activedescendant");
  }
  address.write(state, DEFAULTS);
  read(sample);
}

function move(steps) {
  const from = view.indexOf(current);
  const to = Math.min(Math.max(from + steps, 0), view.length - 1);
  if (view.length && to !== from) choose(view[to]);
}

function turn(steps) {
  const to = Number(state.page) + steps;
  if (to < 1 || to > pages()) return;
  current = null;
  state.sample = "";
  state.page = String(to);
  show();
}

// ---- The reader

function fact(terms, name, value) {
  terms.append(make("dt", { textContent: name }), value instanceof Node ? make("dd", {}, value) : putText(make("dd"), value));
}

async function read(sample) {
  reader.replaceChildren();
  if (!sample) {
    reader.append(make("p", { className: "muted", textContent: "Nothing to read: no sample passes the filters." }));
    return;
  }
  const pattern = literal(state.q);
  const problem = problems.get(sample.problemKey) ?? {};
  const place = view.indexOf(sample);
  const [symbol, word, colour] = verdict(sample);

  const back = make("button", { type: "button", textContent: "‹ Previous", disabled: place <= 0 });
  const on = make("button", { type: "button", textContent: "Next ›", disabled: place >= view.length - 1 });
  // The buttons are made anew with each sample; the new one takes the focus over
  const step = (steps, which) => { move(steps); reader.querySelectorAll(".reader-head button")[which].focus({ preventScroll: true }); };
  back.addEventListener("click", () => step(-1, 0));
  on.addEventListener("click", () => step(1, 1));
  reader.append(make("div", { className: "reader-head" },
    putText(make("h3"), `${sample.task}, problem ${sample.problem}, sample ${sample.index}`),
    make("nav", { ariaLabel: "Samples" }, back, on)));

  const terms = make("dl");
  fact(terms, "Verdict", make("span", { className: colour, textContent: `${symbol} ${word}` }));
  fact(terms, "Answer read", putText(make("span"), sample.answer, pattern));
  fact(terms, "Solution", problem.answer);
  fact(terms, "Why", sample.reason);
  if (sample.vote !== null && sample.vote !== undefined && sample.vote !== sample.answer) fact(terms, "Counts in the vote as", sample.vote);
  if (sample.outcome && sample.outcome !== "ok") fact(terms, "Verification", sample.outcome.replaceAll("_", " "));
  fact(terms, "Length", `${number(sample.tokens)} tokens, ${number(sample.characters)} characters`
    + (sample.finish === "length" ? "; cut off at the token limit" : ""));
  fact(terms, "Seed", sample.seed);
  reader.append(terms);

  reader.append(make("h3", { textContent: "Question" }), putText(make("div", { className: "question" }), problem.question));
  if (problem.prompt) {
    const messages = typeof problem.prompt === "string" ? [{ content: problem.prompt }] : problem.prompt;
    const prompt = make("details", {}, make("summary", { textContent: "Prompt as sent" }));
    for (const message of messages) {
      if (message.role) prompt.append(putText(make("h3"), message.role));
      const content = typeof message.content === "string" ? message.content : JSON.stringify(message.content);
      prompt.append(putText(make("pre"), content));
    }
    reader.append(prompt);
  }

  reader.append(make("h3", { textContent: "The model's text" }));
  if (sample.left_out) {
    reader.append(make("p", { className: "notice", textContent:
      `⚠ Cut in this report: ${number(sample.left_out)} characters are left out in the middle. samples.jsonl has the text in full.` }));
  }
  const text = make("pre", { id: "text", textContent: "…" });
  reader.append(text);
  try {
    const full = await textOf(sample);
    // Another sample may have been chosen meanwhile
    if (text.isConnected) putText(text, full, pattern);
  } catch (error) {
    text.textContent = `This browser cannot decode the text (${error.message}). samples.jsonl has it.`;
  }
}

// ---- Events

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", (event) => {
  if (event.target.name !== "q") setState({ [event.target.name]: event.target.value, page: "1" });
});
form.q.addEventListener("input", debounce(() => setState({ q: form.q.value, page: "1" })));
document.getElementById("clear").addEventListener("click", () => setState(DEFAULTS));
document.getElementById("page-back").addEventListener("click", () => turn(-1));
document.getElementById("page-on").addEventListener("click", () => turn(1));
window.addEventListener("hashchange", () => setState(address.read(DEFAULTS)));

list.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const actions = {
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    PageDown: () => turn(1), PageUp: () => turn(-1), Home: () => move(-view.length), End: () => move(view.length),
  };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
});

document.getElementById("problems").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-problem]");
  if (!button) return;
  const { task, problem } = button.dataset;
  setState({ ...DEFAULTS, problem: key(data.tasks[task], problem) });
  document.getElementById("samples").scrollIntoView({ block: "start" });
  list.focus({ preventScroll: true });
});

setState(address.read(DEFAULTS));
