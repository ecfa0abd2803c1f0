"use strict";
// Shared by all reports. Whatever comes from a model is shown with textContent, never as HTML.

// What a browser would drop, obey or draw as nothing; page.py has the same list
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const MISSING = "–";

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function readJson(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

// Appends text with its control characters spelled out
function appendVisible(node, text) {
  let from = 0;
  for (const match of text.matchAll(CONTROLS)) {
    node.append(text.slice(from, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    node.append(make("span", { className: "control", textContent: `[U+${code}]` }));
    from = match.index + match[0].length;
  }
  node.append(text.slice(from));
}

// Replaces a node's content by text, in which what the pattern finds is marked
function putText(node, value, pattern = null) {
  node.replaceChildren();
  const text = value === null || value === undefined || value === "" ? MISSING : String(value);
  let from = 0;
  let marked = 0;
  if (pattern) {
    for (const match of text.matchAll(pattern)) {
      // A page with a hundred thousand marks would be slow and tell no more
      if (++marked > 1000) break;
      appendVisible(node, text.slice(from, match.index));
      const mark = make("mark");
      appendVisible(mark, match[0]);
      node.append(mark);
      from = match.index + match[0].length;
    }
  }
  appendVisible(node, text.slice(from));
  return node;
}

// What was typed, as a pattern that finds it literally, in either case
function literal(query) {
  return query ? new RegExp(query.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&"), "giu") : null;
}

function number(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en") : MISSING;
}

function plural(amount, noun) {
  return `${number(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}

// Fills a <select> with [value, label] pairs
function putOptions(select, pairs) {
  select.replaceChildren(...pairs.map(([value, label]) => putText(make("option", { value }), label)));
}

// The state of the filters lives in the address after "#", so that a view can be shared
const address = {
  read(defaults) {
    const given = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, given.get(key) ?? value]));
  },
  write(state, defaults) {
    const changed = Object.entries(state).filter(([key, value]) => key in defaults && value !== defaults[key]);
    const hash = new URLSearchParams(changed).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  },
};

// Calls a function once its calls have paused
function debounce(call, pause = 200) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, pause);
  };
}

// Headings with data-sort sort the table's rows by their cells' data-value; cells without a value come last
function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  for (const [column, heading] of headings.entries()) {
    if (!("sort" in heading.dataset)) continue;
    const button = make("button", { type: "button", className: "sort", textContent: heading.textContent });
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? "";
      const numeric = original.every((row) => !Number.isNaN(Number(value(row))));
      const compare = (a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return direction * (numeric ? left - right : left.localeCompare(right));
      };
      body.append(...[...original].sort(compare));
    });
  }
}

document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
