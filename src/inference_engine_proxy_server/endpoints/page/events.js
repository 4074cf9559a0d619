// What happened, the newest first, in full sentences.
import { el, Rows, setAttribute, setHidden, setText } from "./dom.js";
import { clock } from "./format.js";
import { glyph, setGlyph } from "./glyphs.js";
import { hasText, t } from "./text.js";

const SEVERITIES = ["all", "warning", "error"];

export class Events {
  constructor() {
    this.filter = el("input", { type: "search", label: "events.filter", ghost: "events.filter", autocomplete: "off",
      on: { input: () => this.render(this.model) } });
    this.severity = el("select", { label: "events.severity", on: { change: () => this.render(this.model) } },
      ...SEVERITIES.map((name) => el("option", { value: name, text: `events.severity.${name}` })));
    this.list = el("ol", { class: "events" });
    this.rows = new Rows(this.list, newEvent, showEvent);
    this.empty = el("p", { class: "empty", text: "events.none" });
    this.root = el("section", { label: "view.events" }, el("div", { class: "toolbar" }, el("h2", { text: "view.events" }),
      this.filter, this.severity), this.list, this.empty);
  }

  render(model) {
    this.model = model;
    const words = this.filter.value.toLowerCase().trim().split(/\s+/);
    const least = SEVERITIES.indexOf(this.severity.value);
    const shown = model.events.filter((event) => {
      const text = `${event.text} ${event.backend ?? ""} ${event.kind}`.toLowerCase();
      return SEVERITIES.indexOf(event.severity) >= least - (least === 0 ? 1 : 0) && words.every((word) => text.includes(word));
    });
    this.now = model.snapshot.at;
    this.rows.show(shown.map((event) => ({ ...event, now: this.now })), (event) => event.id);
    setHidden(this.empty, shown.length > 0);
  }
}

function newEvent() {
  const mark = glyph("info"), time = el("time"), kind = el("span", { class: "kind" });
  const text = el("span", { class: "text", lang: "en" }), times = el("span", { class: "soft" });
  return { root: el("li", {}, time, mark, kind, text, times), mark, time, kind, text, times };
}

function showEvent(row, event) {
  setGlyph(row.mark, event.severity);
  setText(row.time, clock(event.at, event.now));
  setAttribute(row.time, "datetime", new Date(event.at * 1000).toISOString());
  setText(row.kind, hasText(`kind.${event.kind}`) ? t(`kind.${event.kind}`) : event.kind);
  setText(row.text, event.text);
  setText(row.times, event.count > 1 ? t("events.times", { count: event.count }) : "");
}
