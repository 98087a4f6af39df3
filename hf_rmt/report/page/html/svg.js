"use strict";
// Building blocks: elements, scales, axes, and numbers as text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null)); // text stays text
  return element;
}

function html(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function digits(value, count = 3) {
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size >= 6 || size < -4) return value.toExponential(1);
  return String(Number(value.toPrecision(Math.max(count, size + 1))));
}

function percent(share) {
  if (share !== 0 && share > -1e-6 && share < 1e-3) return "<\u00a00.1\u00a0%";
  if (share > 0.999 && share < 1) return ">\u00a099.9\u00a0%";
  return digits(100 * share) + "\u00a0%";
}

function cellText(value, type) {
  if (value === null || value === undefined || value === "") return "–";
  if (type === "share") return percent(value);
  return typeof value === "number" ? digits(value) : String(value);
}

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(count, 0) }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

function decades(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const powers = Array.from({ length: Math.max(last - first + 1, 0) }, (_, k) => 10 ** (first + k));
  if (powers.length > 1) return powers;
  return [1, 2, 5].flatMap((factor) => [first - 1, first].map((p) => factor * 10 ** p))
    .filter((value) => value >= low && value <= high).sort((a, b) => a - b);
}

/* A frame of axes. `x` and `y` are {from, to, log, label, ticks}; `place` maps data to pixels. */
function frame(width, height, x, y, label) {
  const box = { left: 52, right: width - 10, top: 10, bottom: height - 42 };
  const span = (axis, start, end) => {
    const map = axis.log ? Math.log : Number;
    const low = map(axis.from), scale = (end - start) / (map(axis.to) - low || 1);
    return (value) => start + (map(value) - low) * scale;
  };
  const px = span(x, box.left, box.right), py = span(y, box.bottom, box.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (const tick of y.ticks) root.append(
    svg("line", { class: "grid", x1: box.left, x2: box.right, y1: py(tick), y2: py(tick) }),
    svg("text", { x: box.left - 6, y: py(tick) + 4, "text-anchor": "end" }, digits(tick)));
  for (const tick of x.ticks) root.append(
    svg("line", { class: "axis", x1: px(tick), x2: px(tick), y1: box.bottom, y2: box.bottom + 4 }),
    svg("text", { x: px(tick), y: box.bottom + 18, "text-anchor": "middle" }, (x.text || digits)(tick)));
  root.append(
    svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    svg("text", { x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, x.label),
    svg("text", { x: 12, y: (box.top + box.bottom) / 2, "text-anchor": "middle",
      transform: `rotate(-90 12 ${(box.top + box.bottom) / 2})` }, y.label));
  return { root, px, py, box };
}

/* Draw now, and again when the width of the container changes. */
function drawn(container, draw) {
  let width = 0;
  const again = () => {
    const now = Math.max(260, Math.round(container.clientWidth));
    if (now === width) return;
    width = now;
    container.replaceChildren(draw(width));
  };
  new ResizeObserver(again).observe(container);
  again();
}

function path(points) {
  return points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}
