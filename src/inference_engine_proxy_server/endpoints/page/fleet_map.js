// The state of every backend as one mark, always at the same place: a pattern shows what a list hides.
import { setAttribute, setText, svg } from "./dom.js";
import { shapeOf } from "./glyphs.js";
import { t } from "./text.js";

const CELL = 10; // pixels
const COLUMNS = 50;

export class FleetMap {
  // openBackend(name) shows a backend. The pointer reaches it here, the keyboard in the table.
  constructor(openBackend) {
    this.root = svg("svg", { class: "map", role: "img" });
    this.root.addEventListener("click", (event) => {
      const name = event.target.dataset?.name;
      if (name !== undefined) openBackend(name);
    });
  }

  render(backends) {
    const width = Math.max(1, Math.min(COLUMNS, backends.length)) * CELL;
    const height = Math.max(1, Math.ceil(backends.length / COLUMNS)) * CELL;
    setAttribute(this.root, "viewBox", `0 0 ${width} ${height}`);
    setAttribute(this.root, "width", width);
    setAttribute(this.root, "aria-label", t("fleet.map", { count: backends.length }));
    while (this.root.children.length > backends.length) this.root.lastChild.remove();
    backends.forEach((backend, at) => showMark(this.root.children[at] ?? this.root.appendChild(newMark(at)), backend));
  }
}

function newMark(at) {
  const x = (at % COLUMNS) * CELL, y = Math.floor(at / COLUMNS) * CELL;
  const area = svg("rect", { width: 16, height: 16, class: "area" }, svg("title"));
  return svg("g", { transform: `translate(${x + 1} ${y + 1}) scale(0.5)` }, svg("path"), area);
}

function showMark(mark, backend) {
  const [path, area] = mark.children;
  setAttribute(mark, "class", `glyph is-${backend.shown_state}`);
  setAttribute(path, "d", shapeOf(backend.shown_state));
  setAttribute(area, "data-name", backend.name);
  setText(area.firstChild, `${backend.name}: ${t(`state.${backend.shown_state}`)}`);
}
