// One backend in the fleet's table: a line of values and, if something is wrong, a line with the reason.
import { el, setAttribute, setHidden, setText } from "./dom.js";
import { sentence, shortName } from "./format.js";
import { COLUMNS } from "./fleet_columns.js";
import { isProblem } from "./problems.js";
import { t } from "./text.js";

export function newRow(open) {
  const cells = COLUMNS.map((column) => {
    const cell = el(column.key === "name" ? "th" : "td", { class: column.name, scope: column.key === "name" ? "row" : null });
    column.fill?.(cell);
    return cell;
  });
  const button = el("button", { type: "button", class: "name", tabindex: "-1", on: { click: () => open(row.name) } });
  const label = button.appendChild(el("bdi", { dir: "ltr" }));
  cells[1].append(button);
  const words = el("td", { lang: "en" });
  const reason = el("tr", { class: "reason" }, words);
  const root = el("tbody", {}, el("tr", {}, ...cells), reason);
  const row = { root, cells, button, label, reason, words, name: null };
  return row;
}

export function fillRow(row, backend, now, { scale, columns }) {
  if (row.name !== backend.name) {
    row.name = backend.name;
    setText(row.label, shortName(backend.name));
    setAttribute(row.button, "title", backend.url ?? backend.name);
    setAttribute(row.root, "data-name", backend.name);
  }
  COLUMNS.forEach((column, at) => column.show(row.cells[at], backend, now, scale));
  const isWrong = isProblem(backend);
  setHidden(row.reason, !isWrong);
  setAttribute(row.words, "colspan", columns);
  setText(row.words, isWrong ? reasonOf(backend) : "");
}

export function reasonOf(backend) {
  if (backend.reason) return sentence(backend.reason);
  if (backend.errors_per_minute > 0) return t("fleet.failing", { count: backend.errors_per_minute });
  return "";
}
