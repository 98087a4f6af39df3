"use strict";
// One quantity over the depth of the model, a line for each type of layer.

const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "M-3.6 -3.6h7.2v7.2h-7.2z", "M0 -4.8l4.6 8h-9.2z",
  "M0 -5l5 5l-5 5l-5 -5z", "M0 4.8l4.6 -8h-9.2z",
];
const COLOURS = 7;

/* Types of layers in their order in the model, with their layers by depth. */
function depthLines(layers, key) {
  const lines = new Map();
  for (const layer of layers) {
    if (layer[key] === null || layer[key] === undefined) continue;
    if (!lines.has(layer.kind)) lines.set(layer.kind, []);
    lines.get(layer.kind).push(layer);
  }
  return lines;
}

function depthFigure(layers, column, looks, width, pick) {
  const blocks = layers.map((layer) => layer.block).filter((block) => block !== null);
  const last = blocks.length ? Math.max(...blocks) : -1;
  const outside = layers.some((layer) => layer.block === null);
  const end = Math.max(last + (outside ? 1 : 0), 1);
  const where = (layer) => (layer.block === null ? last + 1 : layer.block);
  const values = layers.map((layer) => layer[column.key]).filter((value) => value !== null);
  const top = 1.08 * Math.max(...values, 1e-12);
  const share = column.type === "share" ? " (fraction)" : "";
  const steps = ticks(0, last, Math.min(Math.max(last, 1), width < 500 ? 6 : 12)).filter((t) => Number.isInteger(t) && t <= last);
  const { root, px, py } = frame(width, 300,
    { from: -0.3, to: end + 0.3, ticks: outside ? [...steps, last + 1] : steps, label: "depth (index of the block)",
      text: (tick) => (outside && tick === last + 1 ? "outside" : String(tick)) },
    { from: 0, to: top, ticks: ticks(0, top, 5), label: column.label + share },
    `${column.label} of ${values.length} layers over the depth of the model. The table below has the numbers.`);
  for (const [kind, members] of depthLines(layers, column.key)) {
    const { shape, colour } = looks.get(kind);
    const points = members.map((layer) => [px(where(layer)), py(layer[column.key]), layer]);
    const sorted = [...points].sort((a, b) => a[0] - b[0]);
    if (sorted.length < 150) root.append(svg("path", { class: "curve", stroke: `var(--s${colour})`, d: path(sorted) }));
    for (const [x, y, layer] of points) root.append(depthMark(layer, column, x, y, shape, colour, pick));
  }
  return root;
}

function depthMark(layer, column, x, y, shape, colour, pick) {
  const text = `${layer.name}: ${column.label} ${cellText(layer[column.key], column.type)}`;
  return svg("path", { class: layer.hollow ? "mark hollow" : "mark", d: SHAPES[shape],
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, stroke: `var(--s${colour})`,
    fill: layer.hollow ? null : `var(--s${colour})`, onclick: () => pick(layer) }, svg("title", {}, text));
}

/* A colour and a shape for each type, the same whatever is filtered. */
function depthLooks(layers) {
  const kinds = [...new Set(layers.map((layer) => layer.kind))];
  return new Map(kinds.map((kind, k) => [kind, { colour: k % COLOURS, shape: (k + Math.floor(k / COLOURS)) % SHAPES.length }]));
}

function depthLegend(layers, looks, key, hollow) {
  const entries = [...depthLines(layers, key).keys()].map((kind) => {
    const { shape, colour } = looks.get(kind);
    const sign = svg("svg", { viewBox: "-11 -7 22 14", "aria-hidden": "true" }, svg("path",
      { d: SHAPES[shape], stroke: `var(--s${colour})`, fill: `var(--s${colour})` }));
    return html("li", {}, sign, " ", kind);
  });
  return layers.some((layer) => layer.hollow) ? [...entries, html("li", { class: "hint" }, hollow)] : entries;
}
