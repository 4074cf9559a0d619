// One backend with everything that is known of it, and the commands for it.
import { drain, move, undrain } from "./commands.js";
import { openDialog } from "./dialogs.js";
import { el, Rows, setAttribute, setHidden, setText } from "./dom.js";
import { EventList } from "./event_list.js";
import { clock, count, ofLimit, rate, seconds, share, UNKNOWN } from "./format.js";
import { glyph, setGlyph } from "./glyphs.js";
import { reasonOf } from "./fleet_row.js";
import { t } from "./text.js";

const MOST_EVENTS = 5;
const FACTS = [
  ["url", (one) => one.url],
  ["source", (one) => one.source],
  ["engine", (one) => [one.engine, one.engine_version].filter(Boolean).join(" ")],
  ["models", (one) => one.models.map((name) => described(name, one.contexts?.[name])).join("; ")],
  ["tier", (one) => count(one.tier)],
  ["slots", (one) => ofLimit(one.processing, one.slots)],
  ["waiting", (one) => count(one.waiting)],
  ["inFlight", (one) => ofLimit(one.in_flight, one.limit)],
  ["cache", (one) => share(one.kv_cache_use)],
  ["requests", (one) => rate(one.requests_per_second)],
  ["tokens", (one) => `${rate(one.tokens_in_per_second)} / ${rate(one.tokens_out_per_second)}`],
  ["ttft", (one) => `${seconds(one.ttft_p50)} / ${seconds(one.ttft_p95)}`],
  ["errors", (one) => count(one.errors_per_minute)],
  ["hits", (one) => `${share(one.predicted_hit_rate)} / ${share(one.real_hit_rate)}`],
];

export class BackendPanel {
  constructor(openKey) {
    this.openKey = openKey;
    this.dialog = null;
  }

  open(model, name) {
    if (model.backend(name) === undefined) return;
    this.dialog?.close();
    this.name = name;
    this.mark = glyph("ready");
    this.state = el("strong");
    this.since = el("span", { class: "soft" });
    this.reason = el("p", { lang: "en" });
    this.facts = FACTS.map(([key]) => el("dd"));
    this.states = el("ul", { class: "model-states" });
    this.stateRows = new Rows(this.states, () => ({ root: el("li") }), (row, one) => setText(row.root, one.text));
    this.events = new EventList();
    this.commands = this.newCommands();
    const dialog = openDialog("panel", name, el("p", { class: "state" }, this.mark, this.state, this.since), this.reason,
      this.commands.root, el("dl", { class: "facts" }, ...FACTS.map(([key], at) =>
        el("div", {}, el("dt", { text: `fact.${key}` }), this.facts[at]))), this.states,
      el("h3", { text: "events.latest" }), this.events.root);
    this.dialog = dialog;
    dialog.addEventListener("close", () => (this.dialog = null));
    this.render(model);
  }

  newCommands() {
    const button = (key, act) => el("button", { type: "button", text: key, "data-command": key.slice(6), on: { click: act } });
    const found = {
      drain: button("panel.drain", () => drain(this.name, this.inFlight)),
      move: button("panel.move", () => move(this.name, this.inFlight)),
      undrain: button("panel.undrain", () => undrain(this.name)),
      key: button("panel.key", () => this.openKey()),
      off: el("p", { class: "soft", text: "panel.off" }),
    };
    return { ...found, root: el("div", { class: "actions" }, found.drain, found.move, found.undrain, found.key, found.off) };
  }

  render(model) {
    if (this.dialog === null) return;
    const backend = model.backend(this.name);
    if (backend === undefined) {
      setText(this.reason, t("panel.gone"));
      return;
    }
    this.inFlight = backend.in_flight;
    setGlyph(this.mark, backend.shown_state);
    setText(this.state, t(`state.${backend.shown_state}`));
    setAttribute(this.state.parentNode, "class", `state is-${backend.shown_state}`);
    const age = model.snapshot.at - backend.since;
    setText(this.since, t("panel.since", { age: seconds(age), time: clock(backend.since, model.snapshot.at) }));
    setText(this.reason, reasonOf(backend));
    FACTS.forEach(([, show], at) => setText(this.facts[at], show(backend) || UNKNOWN));
    this.stateRows.show(modelStates(backend), (one) => one.name);
    const events = model.events.filter((event) => event.backend === this.name).slice(0, MOST_EVENTS);
    this.events.render(events, model.snapshot.at);
    setHidden(this.events.root, events.length === 0);
    this.showCommands(model, backend);
  }

  showCommands(model, backend) {
    const { drain: one, move: two, undrain: three, key, off } = this.commands;
    const may = model.isOperator;
    setHidden(one, !may || backend.draining);
    setHidden(two, !may || (backend.draining && !backend.in_flight));
    setHidden(three, !may || !backend.draining);
    setHidden(key, may || model.snapshot.admin_key === "unset");
    setHidden(off, model.snapshot.admin_key !== "unset");
  }
}

function described(name, context) {
  return context ? `${name} (${t("panel.context", { count: context.toLocaleString("en") })})` : name;
}

// Only routers have models that come and go.
function modelStates(backend) {
  return Object.entries(backend.model_states ?? {})
    .map(([name, { status, requests, waiting }]) => ({ name, text: t("panel.modelState", { name, status, requests, waiting }) }));
}
