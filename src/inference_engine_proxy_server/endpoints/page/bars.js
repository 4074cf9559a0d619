// Bars and sparklines as SVG: the page's policy forbids style attributes.
import { setAttribute, svg } from "./dom.js";

const LENGTH = 100; // units of the view box; the style sheet sets the width

// A bar with up to two parts, such as running and waiting.
export function bar() {
  const parts = ["first", "second"].map((name) => svg("rect", { class: name, height: 8, width: 0, x: 0 }));
  return svg("svg", { viewBox: `0 0 ${LENGTH} 8`, class: "bar", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: LENGTH, height: 8 }), ...parts);
}

// Shares of the whole, 0 to 1; together at most 1 is shown.
export function setBar(root, first, second = 0) {
  const [, one, other] = root.children;
  const length = limited(first);
  setAttribute(one, "width", length);
  setAttribute(other, "x", length);
  setAttribute(other, "width", Math.min(limited(second), LENGTH - length));
}

function limited(share) {
  return Number.isFinite(share) ? Math.round(Math.max(0, Math.min(1, share)) * LENGTH) : 0;
}

export function sparkline() {
  return svg("svg", { viewBox: "0 0 60 16", class: "spark", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area" }), svg("path", { class: "line", "vector-effect": "non-scaling-stroke" }));
}

// `most` is the value at the top; null in `values` leaves a gap at the bottom.
export function setSparkline(root, values, most) {
  const signature = `${most} ${values}`;
  if (root.signature === signature) return; // it changes once a minute
  root.signature = signature;
  const [area, line] = root.children;
  const step = values.length > 1 ? 60 / (values.length - 1) : 60;
  const points = values.map((value, at) => `${round(at * step)} ${round(15 - (14 * (value ?? 0)) / (most || 1))}`);
  const path = points.length === 0 ? "" : `M${points.join("L")}`;
  setAttribute(line, "d", path);
  setAttribute(area, "d", path && `${path}L60 16L0 16Z`);
}

function round(value) {
  return Math.round(value * 10) / 10;
}
