"use strict";
// Which layers are shown: text, choices and ranges; and in which order.

const FIRST_FILTERS = ["kind", "block", "verdict"]; // the others are behind "More filters"

function isNumeric(column) {
  return ["count", "number", "share"].includes(column.type);
}

/* Reads the form's controls: a layer is shown where all of them agree. */
function readFilters(form, columns) {
  const data = new FormData(form);
  const word = String(data.get("search") || "").trim().toLowerCase();
  const tests = [(layer) => !word || `${layer.name} ${layer.notes || ""}`.toLowerCase().includes(word)];
  for (const column of columns) {
    if (column.type === "choice") {
      const wanted = data.get(column.key);
      if (wanted) tests.push((layer) => String(layer[column.key] ?? "") === wanted);
    } else if (isNumeric(column)) {
      const unit = column.type === "share" ? 100 : 1;
      const bound = (side) => (data.get(`${column.key}-${side}`) || "") === "" ? null : Number(data.get(`${column.key}-${side}`)) / unit;
      const [low, high] = [bound("from"), bound("to")];
      if (low !== null) tests.push((layer) => layer[column.key] !== null && layer[column.key] >= low);
      if (high !== null) tests.push((layer) => layer[column.key] !== null && layer[column.key] <= high);
    }
  }
  return (layer) => tests.every((test) => test(layer));
}

function buildFilters(form, columns, layers, changed) {
  const control = (column) => (column.type === "choice" ? choice(column, layers) : range(column));
  const filters = columns.filter((column) => column.type === "choice" || isNumeric(column));
  const first = filters.filter((column) => FIRST_FILTERS.includes(column.key));
  const others = filters.filter((column) => !FIRST_FILTERS.includes(column.key));
  const order = html("select", { name: "order", id: "order" },
    html("option", { value: "" }, "place in the model"), columns.map((column) => html("option", { value: column.key }, column.label)));
  form.append(
    html("label", {}, "Search names and notes", html("input", { type: "search", name: "search" })),
    ...first.map(control),
    html("label", {}, "Order by", order),
    html("button", { type: "button", id: "turn", "aria-label": "Reverse the order" }, "↑ ascending"),
    html("button", { type: "reset" }, "Show all"),
    html("details", {}, html("summary", {}, "More filters"), html("div", { class: "more" }, others.map(control))));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", changed);
  form.addEventListener("reset", () => setTimeout(changed));
}

function choice(column, layers) {
  const values = [...new Set(layers.map((layer) => layer[column.key]).filter((value) => value !== null))];
  return html("label", {}, column.label, html("select", { name: column.key },
    html("option", { value: "" }, "all"), values.map((value) => html("option", { value }, value))));
}

function range(column) {
  const unit = column.type === "share" ? " (%)" : "";
  const side = (name, text) => html("input", { type: "number", step: "any", name: `${column.key}-${name}`,
    placeholder: text, "aria-label": `${column.label}${unit}, ${text}` });
  return html("fieldset", {}, html("legend", {}, column.label + unit),
    html("div", { class: "range" }, side("from", "at least"), side("to", "at most")));
}

/* Layers in order; what has no value comes last, whichever way. */
function ordered(layers, key, descending) {
  if (!key) return descending ? [...layers].reverse() : layers;
  const sign = descending ? -1 : 1;
  const missing = (value) => value === null || value === undefined || value === "";
  return [...layers].sort((a, b) => {
    const [x, y] = [a[key], b[key]];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  });
}
