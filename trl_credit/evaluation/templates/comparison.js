// The table of problems: shown by how they moved, by task, and by what their question says.

const DEFAULTS = { task: "", show: "", q: "" };
const form = document.getElementById("filters");
const rows = [...document.getElementById("problems").tBodies[0].rows];
const wanted = {
  "": () => true,
  moved: (kind) => kind !== "same",
  up: (kind) => kind === "up",
  down: (kind) => kind === "down",
  same: (kind) => kind === "same",
};

function setState(change) {
  const state = { ...DEFAULTS, ...change };
  if (!Object.hasOwn(wanted, state.show)) state.show = "";
  if (!form.task || ![...form.task.options].some((option) => option.value === state.task)) state.task = "";
  for (const name of Object.keys(DEFAULTS)) if (form[name] && form[name].value !== state[name]) form[name].value = state[name];
  const pattern = literal(state.q);
  let shown = 0;
  for (const row of rows) {
    const texts = [...row.querySelectorAll(".question, .question-cell, .clip")].map((cell) => cell.textContent);
    row.hidden = !(wanted[state.show](row.dataset.moved) && (!state.task || row.dataset.task === state.task)
      && (!pattern || texts.some((text) => text.search(pattern) >= 0)));
    shown += !row.hidden;
  }
  document.getElementById("status").textContent = `${number(shown)} of ${plural(rows.length, "problem")}`;
  address.write(state, DEFAULTS);
}

const controls = () => Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, form[name]?.value ?? ""]));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", () => setState(controls()));
form.q.addEventListener("input", debounce(() => setState(controls())));
document.getElementById("clear").addEventListener("click", () => setState(DEFAULTS));
window.addEventListener("hashchange", () => setState(address.read(DEFAULTS)));
setState(address.read(DEFAULTS));
