// A list of events, in full sentences.
import { el, Rows, setAttribute, setText } from "./dom.js";
import { clock } from "./format.js";
import { glyph, setGlyph } from "./glyphs.js";
import { hasText, t } from "./text.js";

export class EventList {
  constructor() {
    this.root = el("ol", { class: "events" });
    this.rows = new Rows(this.root, newEvent, (row, event) => showEvent(row, event, this.now));
  }

  // `now`: the time of the snapshot
  render(events, now) {
    this.now = now;
    this.rows.show(events, (event) => event.id);
  }
}

function newEvent() {
  const mark = glyph("info"), time = el("time"), kind = el("span", { class: "kind" });
  const text = el("span", { class: "text", lang: "en" }), times = el("span", { class: "soft" });
  return { root: el("li", {}, time, mark, kind, text, times), mark, time, kind, text, times };
}

function showEvent(row, event, now) {
  setGlyph(row.mark, event.severity);
  setText(row.time, clock(event.at, now));
  setAttribute(row.time, "datetime", new Date(event.at * 1000).toISOString());
  setText(row.kind, hasText(`kind.${event.kind}`) ? t(`kind.${event.kind}`) : event.kind);
  setText(row.text, event.text);
  setText(row.times, event.count > 1 ? t("events.times", { count: event.count }) : "");
}
