// The learning curves: which methods are drawn, and their values at the update under the pointer.

const drawn = readJson("drawn");
const toggles = [...document.querySelectorAll("[data-toggle]")];

function draw() {
  for (const toggle of toggles) {
    for (const part of document.querySelectorAll(`[data-method="${toggle.dataset.toggle}"]`)) {
      part.toggleAttribute("data-hidden", !toggle.checked);
    }
  }
}

for (const figure of document.querySelectorAll("figure.learning")) {
  const plot = figure.querySelector("svg.plot");
  const cursor = figure.querySelector(".cursor");
  const readout = figure.querySelector(".readout");
  const curves = drawn.curves[figure.dataset.curve];
  const length = Math.max(...curves.map((curve) => curve?.length ?? 0));
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const place = Math.round(share * (length - 1));
    const x = length > 1 ? `${(100 * place) / (length - 1)}%` : "0";
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const values = toggles.flatMap((toggle, method) => {
      const value = curves[method]?.[place];
      return toggle.checked && value !== null && value !== undefined ? [`${drawn.labels[method]} ${value}`] : [];
    });
    putText(readout, `update ${place + drawn.window}: ${values.join(", ")}`);
  });
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = "\u00a0";
  });
}

for (const toggle of toggles) toggle.addEventListener("change", draw);
draw();
