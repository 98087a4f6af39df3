"use strict";
// The page: reads its content, builds its parts, and keeps them in step.

const byId = (id) => document.getElementById(id);

function start() {
  const content = JSON.parse(byId("content").textContent);
  const { columns, layers } = content;
  const state = { key: "", descending: false, open: null };
  const looks = depthLooks(layers), body = byId("rows"), form = byId("filters");
  const rows = new Map(layers.map((layer) => [layer, tableRow(layer, columns, toggle)]));
  let shown = layers;

  function toggle(layer) {
    const closing = state.open;
    body.querySelector("tr.opened")?.remove();
    if (closing) mark(closing, false);
    state.open = closing === layer ? null : layer;
    if (!state.open) return;
    mark(layer, true);
    rows.get(layer).after(detailRow(layer, content, columns));
  }

  function mark(layer, open) {
    rows.get(layer).classList.toggle("open", open);
    rows.get(layer).querySelector("button").setAttribute("aria-expanded", String(open));
  }

  function close() {
    if (!state.open) return;
    const row = rows.get(state.open);
    toggle(state.open);
    row.querySelector("button").focus();
  }

  function pick(layer) {
    if (state.open !== layer) toggle(layer);
    rows.get(layer).scrollIntoView({ block: "start" });
    rows.get(layer).querySelector("button").focus({ preventScroll: true });
  }

  function sortBy(key) {
    state.descending = state.key === key ? !state.descending : false;
    state.key = key;
    byId("order").value = key;
    refresh();
  }

  function refresh() {
    if (state.open) toggle(state.open);
    shown = layers.filter(readFilters(form, columns));
    body.replaceChildren(...ordered(shown, state.key, state.descending).map((layer) => rows.get(layer)));
    byId("count").textContent = `${shown.length} of ${layers.length} layers`;
    byId("turn").textContent = state.descending ? "↓ descending" : "↑ ascending";
    markHead(byId("head"), state.key, state.descending);
    markVerdicts(form);
    redraw();
  }

  function redraw() {
    const column = columns.find((entry) => entry.key === byId("quantity").value);
    if (!column) return;
    const figure = byId("depth-figure");
    figure.replaceWith(html("div", { id: "depth-figure", class: "figure" }));
    if (shown.length) drawn(byId("depth-figure"), (width) => depthFigure(shown, column, looks, width, pick));
    byId("depth-legend").replaceChildren(...depthLegend(shown, looks, column.key, content.hollow));
  }

  buildSummary(content);
  buildHead(byId("head"), columns, sortBy);
  buildFilters(form, columns, layers, () => {
    const key = byId("order").value;
    if (key !== state.key) Object.assign(state, { key, descending: false });
    refresh();
  });
  byId("turn").addEventListener("click", () => {
    state.descending = !state.descending;
    refresh();
  });
  buildVerdicts(content.verdicts, form, refresh);
  buildQuantities(columns, redraw);
  walkRows(body, close);
  refresh();
}

function buildSummary({ summary, facts }) {
  byId("summary").append(...summary.map((line) => html("p", {}, line)));
  byId("facts").hidden = !facts.length;
  byId("facts").append(...facts.map(([label, value, remark]) => html("div", { class: "fact" },
    label, html("strong", {}, value), html("span", {}, remark))));
}

/* Each verdict with its sentence; its button shows the layers that have it. */
function buildVerdicts(verdicts, form, refresh) {
  byId("verdicts").append(...verdicts.map(({ name, count, text }) => html("li", {},
    html("button", { type: "button", class: `chip is-${slug(name)}`, "data-verdict": name, "aria-pressed": "false",
      onclick: () => {
        const select = form.elements.verdict;
        select.value = select.value === name ? "" : name;
        refresh();
      } }, `${name} (${count})`), text)));
  byId("verdicts").parentElement.hidden = !verdicts.length;
}

function markVerdicts(form) {
  for (const chip of document.querySelectorAll(".chip"))
    chip.setAttribute("aria-pressed", String(chip.dataset.verdict === form.elements.verdict?.value));
}

function buildQuantities(columns, redraw) {
  const wanted = columns.filter((column) => isNumeric(column) && column.key !== "block");
  byId("quantity").append(...wanted.map((column) => html("option", { value: column.key }, column.label)));
  const first = wanted.find((column) => column.key === "bits") || wanted[0];
  if (first) byId("quantity").value = first.key;
  byId("quantity").addEventListener("change", redraw);
}

start();
