"use strict";
// The spectrum of one layer: histogram, law, edges and spikes; and the curve of counts.

function spectrumFigure(record, width) {
  const scale = 1 / (record.total * record.width); // bars of area 1
  const heights = record.noise.map((count, k) => scale * (count + record.signal[k]));
  const law = record.law || [[], []];
  const top = 1.12 * Math.max(...heights, ...law[1]);
  const { root, px, py, box } = frame(width, 280,
    { from: 0, to: record.limit, ticks: ticks(0, record.limit, width < 420 ? 4 : 7), label: "singular value of the weight" },
    { from: 0, to: top, ticks: ticks(0, top, 4), label: "density" }, spectrumLabel(record));
  const bar = (k, from, to, name) => svg("rect", { class: name, x: px(k * record.width),
    width: Math.max(0, Math.min(px((k + 1) * record.width), box.right) - px(k * record.width)),
    y: py(scale * to), height: py(scale * from) - py(scale * to) });
  record.noise.forEach((count, k) => {
    if (count) root.append(bar(k, 0, count, "bar-noise"));
    if (record.signal[k]) root.append(bar(k, count, count + record.signal[k], "bar-signal"));
  });
  const upright = (value, name) => svg("line", { class: name, x1: px(value), x2: px(value), y1: box.top, y2: box.bottom });
  for (const value of (record.edges || []).flat()) root.append(upright(value, "law-edge"));
  if (record.edge) root.append(upright(record.edge, "edge"));
  const points = law[0].map((value, k) => [px(value), py(law[1][k])]);
  if (points.length) root.append(svg("path", { class: "law", d: path(points) }));
  for (const value of record.spikes || []) root.append(svg("line",
    { class: "spike", x1: px(value), x2: px(value), y1: box.bottom, y2: box.bottom - 14 }));
  for (const value of record.below || []) root.append(svg("path",
    { class: "below", d: `M${px(value) - 4} ${box.bottom - 12}h8l-4 8z` }));
  if (record.beyond) root.append(svg("text", { class: "halo", x: box.right, y: box.top + 12, "text-anchor": "end" },
    `${record.beyond} more to the right, up to ${digits(record.largest)}`));
  return root;
}

function spectrumLabel(record) {
  const signal = record.signal.reduce((sum, count) => sum + count, record.beyond || 0);
  const edge = record.edge ? ` The noise ends at ${digits(record.edge)}.` : " No law was fitted.";
  return `Histogram of ${record.total} singular values, ${signal} of them signal; the largest is ${digits(record.largest)}.${edge}`;
}

function tailFigure(record, width) {
  const [values, ranks, signal] = record.tail;
  const shown = values.map((value, k) => [value, ranks[k], signal[k]])
    .filter(([value]) => value > 1e-3 * values[0]);
  const low = 0.9 * shown[shown.length - 1][0], high = 1.1 * values[0];
  const most = 1.3 * shown[shown.length - 1][1];
  const { root, px, py } = frame(width, 280,
    { from: low, to: high, log: true, ticks: decades(low, high), label: "singular value (logarithmic)" },
    { from: 0.8, to: most, log: true, ticks: decades(0.8, most), label: "number at or above the value" },
    "How many singular values lie at or above each value, on logarithmic axes.");
  for (const [value, rank, isSignal] of shown) root.append(svg("circle",
    { class: isSignal ? "dot-signal" : "dot-noise", cx: px(value), cy: py(rank), r: 2.6 }));
  return root;
}

function spectrumLegend(record) {
  const sign = (shape) => svg("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, shape);
  const line = (name) => svg("line", { class: name, x1: 1, x2: 21, y1: 7, y2: 7 });
  const entries = [["noise, measured", svg("rect", { class: "bar-noise", width: 22, height: 14 })]];
  if (record.signal.some(Boolean)) entries.push(["signal, measured", svg("rect", { class: "bar-signal", width: 22, height: 14 })]);
  if (record.law) entries.push(["fitted law of the noise", line("law")], ["edges of the law", line("law-edge")],
    ["limit of the noise", line("edge")]);
  if ((record.spikes || []).length) entries.push(["spikes", svg("line", { class: "spike", x1: 11, x2: 11, y1: 0, y2: 14 })]);
  if ((record.below || []).length) entries.push(["signal below the edge", svg("path", { class: "below", d: "M7 3h8l-4 8z" })]);
  return html("ul", { class: "legend" }, entries.map(([text, shape]) => html("li", {}, sign(shape), " ", text)));
}
