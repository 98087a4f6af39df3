"use strict";
// The table of layers: its head sorts, its rows open.

function slug(text) {
  return String(text).toLowerCase().replace(/[^a-z]+/g, "-");
}

function buildHead(head, columns, sortBy) {
  head.replaceChildren(...columns.map((column) => html("th",
    { scope: "col", class: isNumeric(column) ? "right" : null, "data-key": column.key, title: column.help },
    html("button", { type: "button", onclick: () => sortBy(column.key) }, column.label))));
}

function markHead(head, key, descending) {
  for (const cell of head.children) {
    const sorted = cell.dataset.key === key;
    if (sorted) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
    const text = cell.firstChild.textContent.replace(/ [↑↓]$/, "");
    cell.firstChild.textContent = sorted ? `${text} ${descending ? "↓" : "↑"}` : text;
  }
}

/* A dotted name that breaks after its dots. */
function breakable(name) {
  return name.split(/(?<=\.)/).flatMap((part) => [part, html("wbr")]);
}

function tableRow(layer, columns, toggle) {
  const cells = columns.map((column) => {
    const value = layer[column.key];
    if (column.type === "name") return html("th", { scope: "row" },
      html("button", { type: "button", "aria-expanded": "false" }, breakable(value)));
    const empty = value === null || value === "";
    const shape = isNumeric(column) ? "right" : column.key === "notes" ? "wide" : column.key === "kind" ? "kind" : "short";
    const text = cellText(value, column.type);
    return html("td", { class: `${shape}${empty ? " empty" : ""}`, "data-label": column.label },
      column.key === "verdict" && !empty ? html("span", { class: `verdict is-${slug(value)}` }, text) : text);
  });
  return html("tr", { class: "layer", onclick: () => toggle(layer) }, cells);
}

/* Arrows, Home and End go from layer to layer; Escape closes. */
function walkRows(body, close) {
  body.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return close();
    const buttons = [...body.querySelectorAll("tr.layer button")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    buttons[Math.min(Math.max(steps[event.key], 0), buttons.length - 1)].focus();
  });
}
