// One shape for each state, so that no state is told by its colour alone.
import { setAttribute, svg } from "./dom.js";

const SHAPES = {
  ready: "M8 4.5a3.5 3.5 0 1 0 .01 0Z",
  busy: "M8 2a6 6 0 0 0 0 12ZM8 2a6 6 0 0 1 0 12v-1.6a4.4 4.4 0 0 0 0-8.8Z",
  draining: "M8 2v11M3 8l5 5 5-5",
  starting: "M13.5 8A5.5 5.5 0 1 1 8 2.5M8 5v3.4l2.5 1.5",
  suspect: "M8 2 15 14H1ZM8 6.5v3.2M8 11.4v1",
  frozen: "M4.5 2v12M11.5 2v12",
  down: "M3 3l10 10M13 3 3 13",
  error: "M3 3l10 10M13 3 3 13",
  warning: "M8 2 15 14H1ZM8 6.5v3.2M8 11.4v1",
  notice: "M8 7v7M8 2v2",
  info: "M8 7v7M8 2v2",
  ok: "M2 8.5l4 4 8-9",
  queued: "M3 4h10M3 8h10M3 12h10",
  prefill: "M2 8h9M8 4l4 4-4 4",
  decode: "M2 8h2M6.5 8h3M12 8h2",
  resumed: "M13 6a5.5 5.5 0 1 0 .5 3.5M13 2v4H9",
};
const UNKNOWN_SHAPE = "M8 6a2 2 0 1 0 .01 0Z";

// An image of a state; `name` can be changed with setGlyph.
export function glyph(name) {
  const path = svg("path");
  const root = svg("svg", { viewBox: "0 0 16 16", class: "glyph", "aria-hidden": "true" }, path);
  setGlyph(root, name);
  return root;
}

export function setGlyph(root, name) {
  setAttribute(root, "class", `glyph is-${name}`);
  setAttribute(root.firstChild, "d", shapeOf(name));
}

export function shapeOf(name) {
  return SHAPES[name] ?? UNKNOWN_SHAPE;
}
