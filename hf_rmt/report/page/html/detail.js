"use strict";
// What opens below a layer: its verdict in a sentence, its spectrum, what became of it.

function detailRow(layer, content, columns) {
  const verdict = content.verdicts.find((entry) => entry.name === layer.verdict);
  const parts = [
    verdict ? html("p", { class: "sentence" }, html("strong", {}, `${verdict.name}: `), verdict.text) : null,
    layer.notes ? html("p", {}, html("strong", {}, "Notes: "), layer.notes) : null,
    layer.before ? changes(layer) : null,
    layer.spectrum ? spectrumPanels(layer.spectrum) : html("p", { class: "hint" }, "This report holds no spectrum of the layer."),
    values(layer, columns),
  ];
  return html("tr", { class: "opened" },
    html("td", { class: "detail", colspan: columns.length }, html("div", { class: "inside" }, parts)));
}

function spectrumPanels(record) {
  const first = html("div", { class: "figure" }), second = html("div", { class: "figure" });
  const panels = html("div", {},
    html("div", { class: "panels" },
      html("div", {}, html("h3", {}, "Spectrum"), first),
      html("div", {}, html("h3", {}, "Number of singular values at or above each value"), second)),
    spectrumLegend(record));
  requestAnimationFrame(() => { // widths are known once the row is in the page
    drawn(first, (width) => spectrumFigure(record, width));
    drawn(second, (width) => tailFigure(record, width));
  });
  return panels;
}

function changes(layer) {
  const parts = [html("p", {}, html("strong", {}, "Before and after: "),
    `${digits(layer.before)} bits a weight before, ${digits(layer.bits)} after (${percent(layer.bits / layer.before)}).`)];
  if (layer.energies) parts.push(html("p", {}, layer.energies));
  if (layer.shares) parts.push(shareBar(layer.shares));
  return html("div", {}, parts);
}

function shareBar(shares) {
  const bar = html("div", { class: "share", "aria-hidden": "true" });
  for (const [name, share] of shares) {
    const part = html("span", { class: `part-${name}` });
    part.style.width = `${100 * share}%`;
    bar.append(part);
  }
  return bar;
}

function values(layer, columns) {
  const shown = columns.filter((column) => isNumeric(column) && layer[column.key] !== null);
  return html("dl", { class: "values" }, shown.map((column) => html("div", { title: column.help },
    html("dt", {}, column.label), html("dd", {}, cellText(layer[column.key], column.type)))));
}
