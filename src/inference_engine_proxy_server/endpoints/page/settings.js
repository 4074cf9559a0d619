// The settings in force, where each came from, and its default. Secrets are masked by the proxy.
import { askOperator } from "./access.js";
import { cells, el, Rows, setAttribute, setHidden, setText, table } from "./dom.js";
import { UNKNOWN } from "./format.js";
import { t } from "./text.js";

const REFRESH_MS = 15_000; // a reload of the configuration may change them
const COLUMNS = [["name", ""], ["value", ""], ["default", "w2"], ["source", "w1"], ["description", "w2 long"]]
  .map(([key, name]) => ({ key, name: `${name} col-${key}`, head: `settings.${key}` }));

export class SettingsView {
  constructor() {
    this.filter = el("input", { type: "search", label: "settings.filter", ghost: "settings.filter", autocomplete: "off",
      on: { input: () => this.show() } });
    this.changed = el("input", { type: "checkbox", id: "only-changed", on: { change: () => this.show() } });
    this.table = table("view.settings", COLUMNS, "settings");
    this.rows = new Rows(this.table.body, () => cells(COLUMNS), showSetting);
    this.failure = el("p", { class: "failure" });
    this.root = el("section", { label: "view.settings" }, el("div", { class: "toolbar" }, el("h2", { text: "view.settings" }), this.filter,
      this.changed, el("label", { for: "only-changed", text: "settings.changed" })), this.failure, this.table.frame);
    this.settings = [];
    this.askedAt = -Infinity;
  }

  async render() {
    if (performance.now() - this.askedAt < REFRESH_MS) return;
    this.askedAt = performance.now();
    try {
      const reply = await askOperator("settings");
      this.settings = reply.settings;
      setText(this.failure, "");
      this.show();
    } catch (error) {
      setText(this.failure, error.message);
    }
  }

  show() {
    const word = this.filter.value.trim().toLowerCase();
    const shown = this.settings.filter((one) => `${one.name} ${one.description ?? ""}`.toLowerCase().includes(word)
      && (!this.changed.checked || one.source !== "default"));
    this.rows.show(shown, (one) => one.name);
    setHidden(this.table.frame, shown.length === 0);
  }
}

function showSetting(row, one) {
  setText(row.name, one.name);
  setText(row.value, written(one.value));
  setText(row.default, written(one.default));
  setText(row.source, one.source === "default" ? t("settings.fromDefault") : one.source ?? UNKNOWN);
  setText(row.description, one.description ?? "");
  setAttribute(row.description, "lang", "en");
  setAttribute(row.root, "class", one.source === "default" ? "" : "chosen");
}

function written(value) {
  if (Array.isArray(value)) return value.join(", ") || UNKNOWN;
  if (value === null || value === undefined || value === "") return UNKNOWN;
  return typeof value === "string" ? value : JSON.stringify(value);
}
