// What happened, the newest first.
import { el, setHidden } from "./dom.js";
import { EventList } from "./event_list.js";

const SEVERITIES = ["info", "warning", "error"];

export class Events {
  constructor() {
    this.filter = el("input", { type: "search", label: "events.filter", ghost: "events.filter", autocomplete: "off",
      on: { input: () => this.render(this.model) } });
    this.severity = el("select", { label: "events.severity", on: { change: () => this.render(this.model) } },
      ...SEVERITIES.map((name) => el("option", { value: name, text: `events.severity.${name}` })));
    this.list = new EventList();
    this.empty = el("p", { class: "empty", text: "events.none" });
    this.root = el("section", { label: "view.events" }, el("div", { class: "toolbar" }, el("h2", { text: "view.events" }),
      this.filter, this.severity), this.list.root, this.empty);
  }

  render(model) {
    this.model = model;
    const words = this.filter.value.toLowerCase().trim().split(/\s+/);
    const least = SEVERITIES.indexOf(this.severity.value);
    const shown = model.events.filter((event) => {
      const text = `${event.text} ${event.backend ?? ""} ${event.kind}`.toLowerCase();
      return SEVERITIES.indexOf(event.severity) >= least && words.every((word) => text.includes(word));
    });
    this.list.render(shown, model.snapshot.at);
    setHidden(this.list.root, shown.length === 0);
    setHidden(this.empty, shown.length > 0);
  }
}
