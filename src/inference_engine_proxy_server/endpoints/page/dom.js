// Creating and updating elements. An update touches the page only where something changed.
// Whatever comes from the network is shown as text: a backend chooses its own reasons and model names.
import { fillElement } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const TEXT_ATTRIBUTES = { text: "data-text", label: "data-label", hint: "data-hint", ghost: "data-ghost" };

// text, label, hint and ghost are keys of texts: content, aria-label, title and placeholder.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(TEXT_ATTRIBUTES[name] ?? name, value === true ? "" : value);
    }
  }
  fillElement(element);
  element.append(...children);
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// For elements that contain nothing but text.
export function setText(element, text) {
  const node = element.firstChild;
  if (node === null) {
    if (text !== "") element.textContent = text;
  } else if (node.data !== text) {
    node.data = text;
  }
}

// null removes the attribute.
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

// A list of rows that follows a list of items. Rows are found by key, and moved only if the order differs.
export class Rows {
  // create(item) returns an object with `root`; update(row, item) shows the item in it. Rows come after `head`.
  constructor(parent, create, update, head = null) {
    this.parent = parent;
    this.head = head;
    this.create = create;
    this.update = update;
    this.byKey = new Map();
  }

  show(items, keyOf) {
    const keys = new Set(items.map(keyOf));
    for (const [key, row] of this.byKey) {
      if (keys.has(key)) continue;
      row.root.remove();
      this.byKey.delete(key);
    }
    let place = this.head === null ? this.parent.firstChild : this.head.nextSibling;
    for (const item of items) {
      const key = keyOf(item);
      let row = this.byKey.get(key);
      if (row === undefined) this.byKey.set(key, (row = this.create(item)));
      this.update(row, item);
      if (row.root === place) place = place.nextSibling;
      else this.parent.insertBefore(row.root, place);
    }
  }
}

// A table with a caption for screen readers. A column: { key, head (a text's key), name (a CSS class) }.
export function table(caption, columns, name = "") {
  const groups = el("colgroup", {}, ...columns.map((column) => el("col", { class: column.name })));
  const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: column.name, text: column.head })));
  const body = el("tbody");
  const root = el("table", { class: name }, el("caption", { class: "for-readers", text: caption }), groups,
    el("thead", {}, head), body);
  return { root, head, body, frame: el("div", { class: "frame", tabindex: "0", role: "region", label: caption }, root) };
}

// The cells of a row by the keys of their columns; the first one is its heading.
export function cells(columns) {
  const byKey = {};
  const root = el("tr");
  columns.forEach((column, at) => {
    byKey[column.key] = root.appendChild(el(at ? "td" : "th", { class: column.name, scope: at ? null : "row" }));
  });
  return { root, ...byKey };
}
